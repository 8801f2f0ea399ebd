"""The network as the engine runs it: the same layers over packed tokens, from weights that lie together.

A step on a CPU is bound by how many small operations there are, not by what they compute. So no module is called here,
what is always used together is one product, and every result goes to a place that was made before (`Buffers`): nothing
is allocated, and on a GPU a step can be recorded. `model.network.layer` is what this is held to, by tests.

Letters: N packed tokens, D width, I the FFN's width, H query heads, G key/value heads, d head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from model.config import StreamChatConfig
from model.network.layer import Attention, Layer, Norm
from model.network.rope import TurnInPlace
from model.network.streamchat import StreamChat

Quantise = Callable[[Tensor], Tensor]  # a weight matrix becomes one that takes less memory

# From so many rows on, a CPU's matrix product shares its work better among threads if what it makes lies by columns.
WIDE = 16


class Buffers:
    """What a forward over N tokens reads and writes; layers use the same ones in turn."""

    def __init__(
        self, config: StreamChatConfig, num_rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Nothing in them means anything before it is written."""
        wide = device.type == "cpu" and num_rows >= WIDE

        def rows(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(num_rows, *shape, dtype=dtype, device=device)

        def states(width: int) -> Tensor:  # [N, width], column by column where that is faster
            return torch.empty(width, num_rows, dtype=dtype, device=device).t() if wide else rows(width)

        heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.tokens = rows(dtype=torch.int64)  # whoever fills them may put others here
        self.turns = torch.empty(2, num_rows, size, dtype=torch.float32, device=device)  # `Rope.turns`
        self.words, self.hidden = rows(config.hidden_size), states(config.hidden_size)
        self.normed, self.length = states(config.hidden_size), rows(1, dtype=torch.float32)
        self.gate_up = states(2 * config.intermediate_size)
        self.gate, self.up = self.gate_up.chunk(2, -1)
        # What attention reads and writes lies row by row: queries, keys, values; queries for frames; what was read.
        self.heads, self.looking = rows((heads + 2 * groups) * size), rows(heads * size)
        self.read = rows(heads * size)
        self.heads_states, self.looking_states = (
            states(own.shape[1]) if wide else own for own in (self.heads, self.looking)
        )
        each = self.heads.unflatten(1, (-1, size))
        self.query, self.keys_values = each[:, :heads], each[:, heads:]  # [N, H, d], [N, 2 * G, d]
        self.turn = TurnInPlace(each[:, : heads + groups], *self.turns.unsqueeze(2))  # queries and keys


def lay(states: Tensor, rows: Tensor) -> None:
    """The same numbers row by row, if they are not."""
    if states is not rows:
        rows.copy_(states)


class Reader(Protocol):
    """How packed tokens read what stands around them."""

    buffers: Buffers

    def attend(self, layer: int) -> None:
        """Text to text: `query` and `keys_values`, which are kept -> `read`."""
        ...

    def look(self, cross: int) -> None:
        """Text to frames: `looking`, not yet turned -> `read`; `cross` counts cross layers."""
        ...


class Projection:
    """A linear layer's numbers."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        whole = type(weight) in (Tensor, nn.Parameter)  # numbers of fewer bits know `linear` alone
        self._columns = weight.t() if whole else None

    def into(self, x: Tensor, out: Tensor) -> None:
        """[N, in] -> out [N, out]."""
        if self._columns is None:
            out.copy_(linear(x, self.weight, self.bias))
        elif self.bias is None:
            torch.mm(x, self._columns, out=out)
        else:
            torch.addmm(self.bias, x, self._columns, out=out)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        return linear(x, self.weight, self.bias)

    def onto(self, x: Tensor, out: Tensor) -> None:
        """[N, in] is added to out [N, out]. No bias."""
        if self._columns is None:
            out.add_(linear(x, self.weight))
        else:
            out.addmm_(x, self._columns)

    def rows(self, first: int) -> Projection:
        """What it makes from row `first` on."""
        return Projection(self.weight[first:], None if self.bias is None else self.bias[first:])

    def smaller(self, quantise: Quantise) -> Projection:
        """The same in fewer bits."""
        return Projection(quantise(self.weight), self.bias)


def joined(*parts: nn.Linear) -> Projection:
    """Several layers' numbers as one, of which their own become views: no byte is kept twice."""
    biases = [bias for part in parts if (bias := bias_of(part)) is not None]
    return Projection(_join([part.weight for part in parts]), _join(biases) if biases else None)


def _join(own: Sequence[Tensor]) -> Tensor:
    storages = {each.untyped_storage().data_ptr() for each in own}
    ends = [each.storage_offset() + each.numel() for each in own]
    if len(storages) == 1 and ends[:-1] == [each.storage_offset() for each in own[1:]]:  # joined before
        shape = (sum(len(each) for each in own), *own[0].shape[1:])
        return own[0].detach().as_strided(shape, own[0].stride())
    with torch.inference_mode(False):  # they may be trained afterwards
        whole = torch.cat([parameter.detach() for parameter in own])
    for parameter, view in zip(own, whole.split([len(each) for each in own]), strict=True):
        parameter.data = view
    return whole


def joined_view(part: nn.Linear) -> Projection:
    """A layer's numbers where they lie."""
    bias = bias_of(part)
    return Projection(part.weight.detach(), None if bias is None else bias.detach())


def bias_of(part: nn.Linear) -> Tensor | None:
    """Its bias if it has one, which torch's own types do not know."""
    return part.bias


class Scale:
    """RMSNorm, x * weight / sqrt(mean(x ** 2) + eps), in four operations: lengths stand for means."""

    def __init__(self, norm: Norm) -> None:
        root = norm.weight.shape[0] ** 0.5
        self._weight = norm.weight.detach().float() * root
        self._least = torch.tensor(root * norm.eps**0.5, device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        out = torch.empty_like(x)
        self.into(x, x.new_empty(len(x), 1, dtype=torch.float32), out)
        return out

    def into(self, x: Tensor, length: Tensor, out: Tensor) -> None:
        """x [N, D] -> out [N, D]; `length` [N, 1] is written on the way."""
        torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32, out=length)
        torch.div(x, length.hypot_(self._least), out=out).mul_(self._weight)


class Cross:
    """What a cross layer has more."""

    def __init__(self, layer: Layer, attention: Attention) -> None:
        assert layer.gate_cross is not None
        self.number = layer.cross  # among the cross layers
        self.gate = (layer.gate_cross.tanh() if layer.tanh else layer.gate_cross).detach()
        self.query, self.output = joined_view(attention.q_proj), joined_view(attention.o_proj)


class DecodingLayer:
    """One layer's numbers, ready for decoding."""

    def __init__(self, layer: Layer, quantise: Quantise | None) -> None:
        own, mlp = layer.self_attn, layer.mlp
        self._number = layer.index
        self._norm, self._post_norm = Scale(layer.input_layernorm), Scale(layer.post_attention_layernorm)
        self._heads, self._output = joined(own.q_proj, own.k_proj, own.v_proj), joined_view(own.o_proj)
        self._gate_up, self._down = joined(mlp.gate_proj, mlp.up_proj), joined_view(mlp.down_proj)
        self._cross = None if layer.gate_cross is None else Cross(layer, layer.cross_attn or own)
        self.frames = self._heads.rows(own.q_proj.out_features)  # keys and values, of frames as well
        if layer.cross_attn is not None:
            self.frames = joined(layer.cross_attn.k_proj, layer.cross_attn.v_proj)
        if quantise is not None:
            self._quantise(layer, quantise)

    def _quantise(self, layer: Layer, quantise: Quantise) -> None:
        """Text's weights; the frames' stay. The module's own copies of what is not needed for frames are let go."""
        if (cross := self._cross) is not None:
            cross.query, cross.output = cross.query.smaller(quantise), cross.output.smaller(quantise)
            for part in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                part.weight.data = part.weight.data.clone()  # frames need them, and nothing else of the whole
            if layer.cross_attn is None:
                self.frames = joined(layer.self_attn.k_proj, layer.self_attn.v_proj)
        self._heads, self._output = self._heads.smaller(quantise), self._output.smaller(quantise)
        self._gate_up, self._down = self._gate_up.smaller(quantise), self._down.smaller(quantise)
        gone = [layer.self_attn.q_proj, layer.self_attn.o_proj, *layer.mlp.children()]
        for part in [each for each in gone if isinstance(each, nn.Linear)]:
            part.weight.data = part.weight.data.new_empty(0)

    def __call__(self, reader: Reader) -> None:
        """`hidden` of the reader's buffers goes through the layer."""
        own = reader.buffers
        hidden, normed = own.hidden, own.normed
        if (cross := self._cross) is not None:
            self._norm.into(hidden, own.length, normed)
            cross.query.into(normed, own.looking_states)
            lay(own.looking_states, own.looking)
            reader.look(cross.number)
            cross.output.into(own.read, normed)
            torch.addcmul(hidden, cross.gate, normed, out=hidden)
        self._norm.into(hidden, own.length, normed)
        self._heads.into(normed, own.heads_states)
        lay(own.heads_states, own.heads)
        own.turn()
        reader.attend(self._number)
        self._output.onto(own.read, hidden)
        self._post_norm.into(hidden, own.length, normed)
        self._gate_up.into(normed, own.gate_up)
        silu(own.gate, inplace=True).mul_(own.up)
        self._down.onto(own.gate, hidden)


class Decoding:
    """The language model over packed tokens."""

    def __init__(self, model: StreamChat, quantise: Quantise | None = None) -> None:
        """Lays `model`'s weights together. With `quantise` it is used up: only the frames' way through it is left."""
        language = model.language
        self.config, self.rope = model.config, model.rope
        self._embedding = language.embed_tokens.weight.detach()
        head = language.lm_head
        with torch.no_grad():
            self._norm = Scale(language.norm)
            self._head = Projection(self._embedding if head is None else head.weight.detach())
            numbers = range(model.config.num_hidden_layers)
            self.layers = [DecodingLayer(model.layer(number), quantise) for number in numbers]

    def buffers(self, num_rows: int) -> Buffers:
        """For a forward over so many tokens."""
        return Buffers(self.config, num_rows, self._embedding.dtype, self._embedding.device)

    def logits_buffer(self, num_rows: int) -> Tensor:
        """For as many rows' logits, [N, V]."""
        return self._embedding.new_empty(num_rows, self.config.vocab_size)

    def read(self, reader: Reader) -> None:
        """The reader's tokens go through all layers; `normed` holds the final hidden states."""
        own = reader.buffers
        torch.index_select(self._embedding, 0, own.tokens, out=own.words)
        own.hidden.copy_(own.words)
        for layer in self.layers:
            layer(reader)
        self._norm.into(own.hidden, own.length, own.normed)

    def logits(self, reader: Reader, out: Tensor) -> None:
        """What was read -> out [N, V]."""
        self._head.into(reader.buffers.normed, out)
