"""The vision encoder: SigLIP, from raw pixels to visual tokens. Its parameters have transformers' names.

Written out here, since transformers' own brings seconds of imports and 150 MB into every process that sees a model.

Letters: N pictures, S pixels along a side, P visual tokens a picture, Dv the encoder's width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from model.config import VisionConfig


class Embeddings(nn.Module):
    """Patches, and where they are."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, width = config.patch_size, config.hidden_size
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=size, stride=size)
        self.position_embedding = nn.Embedding(config.num_visual_tokens, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, P, Dv]."""
        return self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding.weight


class Attention(nn.Module):
    """Every patch of a picture reads all of them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, Dv] -> [N, P, Dv]."""
        query, keys, values = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        read = scaled_dot_product_attention(query, keys, values)
        return self.out_proj(read.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.hidden_act == "gelu_pytorch_tanh" else "none"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, Dv] -> [N, P, Dv]."""
        return self.fc2(gelu(self.fc1(x), approximate=self.approximate))


class VisionLayer(nn.Module):
    """One layer, norms first."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, Dv] -> [N, P, Dv]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionLayers(nn.Module):
    """All layers, one after the other."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        """[N, P, Dv] -> [N, P, Dv]."""
        for layer in self.layers:
            x = layer(x)
        return x


class Siglip(nn.Module):
    """SigLIP without its pooling head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = VisionLayers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        """Weights of an encoder that is trained from nothing, as SigLIP's were."""
        patches = self.embeddings.patch_embedding
        nn.init.kaiming_normal_(patches.weight, nonlinearity="linear")
        nn.init.normal_(self.embeddings.position_embedding.weight, std=self.post_layernorm.weight.numel() ** -0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, S, S] from -1 to 1 -> the last hidden state [N, P, Dv]."""
        return self.post_layernorm(self.encoder(self.embeddings(pixels)))


class VisionTower(nn.Module):
    """SigLIP, from pictures as they are. Its parameters are `encoder.` and transformers' own names."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Siglip(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [N, S, S, 3] (RGB, as `to_pixels` gives them) -> visual tokens [N, P, Dv]."""
        dtype = self.encoder.post_layernorm.weight.dtype
        scaled = pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0
        return self.encoder(scaled.to(dtype))
