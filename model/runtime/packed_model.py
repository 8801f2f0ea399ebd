"""The network as the engine runs it: the same layers over packed tokens, from joined weights, in place.

A step on a CPU is bound by how many small operations there are, not by what they compute. So no module is called here,
what is always used together is one product, and every result is written to memory that was allocated before
(`Buffers`): nothing is allocated, and on a GPU a step can be captured. Tests hold it to `StreamChat.forward`.

Letters: N packed tokens, D width, I the FFN's width, H query heads, G key/value heads, d head size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import StreamChatConfig
from model.network.layer import AttentionBackend, QueryKeysValues, run_layer, swiglu
from model.network.norm import InPlaceRMSNorm
from model.network.rope import RotateInto
from model.network.streamchat import StreamChat
from model.runtime.packed_weights import LayerWeights, Projection, Quantise, join

# From this many tokens on, a CPU's matrix product shares its work better among threads if its output lies by columns.
COLUMN_MAJOR_ROWS = 16


class Buffers:
    """What a forward over N tokens reads and writes; all layers use the same ones in turn."""

    def __init__(
        self, config: StreamChatConfig, num_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Not initialised."""
        by_columns = device.type == "cpu" and num_tokens >= COLUMN_MAJOR_ROWS

        def rows(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(num_tokens, *shape, dtype=dtype, device=device)

        def states(width: int) -> Tensor:  # [N, width], column by column where that is faster
            if not by_columns:
                return rows(width)
            return torch.empty(width, num_tokens, dtype=dtype, device=device).t()

        heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.token_ids = rows(dtype=torch.int64)  # may be replaced
        self.rotation = torch.empty(2, num_tokens, size, dtype=torch.float32, device=device)
        self.embeddings, self.hidden = rows(config.hidden_size), states(config.hidden_size)
        self.normed, self.length = states(config.hidden_size), rows(1, dtype=torch.float32)
        self.gate_up = states(2 * config.intermediate_size)
        self.gate, self.up = self.gate_up.chunk(2, -1)
        # What attention reads and writes lies row by row.
        self.heads, self.frame_heads = rows((heads + 2 * groups) * size), rows(heads * size)
        self.read = rows(heads * size)
        self.heads_states, self.frame_heads_states = (
            states(own.shape[1]) if by_columns else own for own in (self.heads, self.frame_heads)
        )
        each = self.heads.unflatten(1, (-1, size))
        self.frame_query = self.frame_heads.unflatten(1, (-1, size))  # [N, H, d]
        self.query, self.keys_values = each[:, :heads], each[:, heads:]  # [N, H, d], [N, 2 * G, d]
        self.keys, self.values = self.keys_values.chunk(2, 1)
        query_keys = each[:, : heads + groups]
        self._rotate = RotateInto(query_keys, self.rotation.unsqueeze(2), query_keys)

    def rotate(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionBackend`: query and keys are these buffers' own, and are rotated in place."""
        self._rotate()
        return query, keys


class PackedLayer:
    """One layer's operations (`LayerOperations`), in place; what they return is part of the buffers."""

    def __init__(self, weights: LayerWeights, buffers: Buffers) -> None:
        self._weights, self._buffers = weights, buffers
        self.index, self.cross = weights.index, weights.cross

    def input_layernorm(self, hidden: Tensor) -> Tensor:
        return self._weights.input_layernorm(hidden, self._buffers.normed, self._buffers.length)

    def post_attention_layernorm(self, hidden: Tensor) -> Tensor:
        return self._weights.post_attention_layernorm(hidden, self._buffers.normed, self._buffers.length)

    def frame_query(self, x: Tensor) -> Tensor:
        own, cross = self._buffers, self._weights.cross_weights
        assert cross is not None
        cross.query(x, own.frame_heads_states)
        if own.frame_heads_states is not own.frame_heads:
            own.frame_heads.copy_(own.frame_heads_states)
        return own.frame_query

    def query_keys_values(self, x: Tensor) -> QueryKeysValues:
        own = self._buffers
        self._weights.query_keys_values(x, own.heads_states)
        if own.heads_states is not own.heads:
            own.heads.copy_(own.heads_states)
        return own.query, own.keys, own.values

    def add_cross_attention(self, hidden: Tensor, read: Tensor) -> Tensor:
        cross = self._weights.cross_weights
        assert cross is not None
        return torch.addcmul(hidden, cross.gate, cross.output(read, self._buffers.normed), out=hidden)

    def add_self_attention(self, hidden: Tensor, read: Tensor) -> Tensor:
        return self._weights.output.add_to(hidden, read)

    def add_feed_forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        own, mlp = self._buffers, self._weights.mlp
        mlp.gate_up(x, own.gate_up)
        return mlp.down.add_to(hidden, swiglu(own.gate, own.up, in_place=True))


class PackedModel:
    """The language model over packed tokens."""

    def __init__(self, model: StreamChat, quantise: Quantise | None = None) -> None:
        """Joins `model`'s weights. With `quantise`, `model` loses what is replaced."""
        language = model.language
        self.config, self.rope = model.config, model.rope
        self._embedding = language.embed_tokens.weight.detach()
        with torch.no_grad():
            self._norm = InPlaceRMSNorm(language.norm)
            self._head = Projection(self._embedding) if language.lm_head is None else join(language.lm_head)
            numbers = range(model.config.num_hidden_layers)
            self.layers = [LayerWeights(model.layer(number), quantise) for number in numbers]

    def buffers(self, num_tokens: int) -> Buffers:
        """For a forward over this many tokens."""
        return Buffers(self.config, num_tokens, self._embedding.dtype, self._embedding.device)

    def logits_buffer(self, num_tokens: int) -> Tensor:
        """For as many tokens' logits, [N, V]."""
        return self._embedding.new_empty(num_tokens, self.config.vocab_size)

    def forward(self, buffers: Buffers, attention: AttentionBackend) -> None:
        """The buffers' tokens go through all layers; `normed` holds the final hidden states."""
        torch.index_select(self._embedding, 0, buffers.token_ids, out=buffers.embeddings)
        hidden = buffers.hidden.copy_(buffers.embeddings)
        for weights in self.layers:
            hidden = run_layer(PackedLayer(weights, buffers), hidden, attention)
        self._norm(hidden, buffers.normed, buffers.length)

    def logits(self, buffers: Buffers, out: Tensor) -> None:
        """Final hidden states -> out [N, V]."""
        self._head(buffers.normed, out)
