"""FSDP2: each worker holds a shard of every weight, gradient and optimizer moment. Checkpoints are sharded too.

On GPUs weights are float32 and arithmetic is bfloat16. On CPUs everything is float32 (gloo), except with `autocast`.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from model.checkpoint.folder import save_folder, weight_files
from model.network.layer import Layer
from model.network.streamchat import StreamChat
from training.optimise.objective import Objective
from training.run.recipe import Recipe

# Keys and values are views of the projections' output. No code writes to them in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def transformer_layers(model: StreamChat) -> list[nn.Module]:
    """The layers of the language model and the encoder. Each is sharded, checkpointed and compiled on its own."""
    return [*model.language.layers, *model.vision.encoder.encoder.layers]


def shard(objective: Objective, mesh: DeviceMesh, recipe: Recipe) -> None:
    """Apply activation checkpointing, torch.compile and FSDP2, in the order that they require.

    A single worker on a CPU needs no shards, so its weights stay plain tensors.
    """
    on_gpu = mesh.device_type == "cuda"
    sharded = on_gpu or mesh.size() > 1
    param_dtype = torch.bfloat16 if on_gpu and recipe.bfloat16 else None
    # Rotary embeddings stay float32, so inputs of a layer are not cast.
    policy = MixedPrecisionPolicy(
        param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in transformer_layers(objective.model):
        methods = ("forward", "forward_frames") if isinstance(layer, Layer) else ("forward",)
        if recipe.checkpoint_activations:
            for name in methods:
                recomputed = functools.partial(checkpoint, getattr(layer, name), use_reentrant=False)
                setattr(layer, name, recomputed)
        if recipe.compile:
            layer.compile()
        if sharded:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
            if "forward_frames" in methods:
                register_fsdp_forward_method(layer, "forward_frames")
    if sharded:
        fully_shard(objective, mesh=mesh, mp_policy=policy)


def load_weights(model: StreamChat, folder: Path, device: torch.device) -> None:
    """Load weights into a sharded model on the meta device: float32, one tensor at a time, each worker its shard.

    Raises ValueError if the folder lacks a tensor.
    """
    model.to_empty(device=device)
    model.vision.fill_buffers(device)
    missing = dict(model.named_parameters())
    with torch.no_grad():
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 - not a dict
                    _copy(missing.pop(name), reader.get_tensor(name))
    if missing:
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, the first is {min(missing)}")


def _copy(parameter: Tensor, full: Tensor) -> None:
    full = full.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        # Every worker has read the full tensor, so no worker sends it.
        full = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(full)


def save_checkpoint(folder: Path, model: StreamChat, optimizers: list[torch.optim.Optimizer]) -> None:
    """Write this worker's shard of weights and moments. All workers call it, and their files make one checkpoint."""
    weights, moments = get_state_dict(model, optimizers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns when there is a single worker
        state_dict_saver.save({"model": weights, "optimizer": moments}, checkpoint_id=str(folder))


def load_checkpoint(folder: Path, model: StreamChat, optimizers: list[torch.optim.Optimizer]) -> None:
    """Read a checkpoint into this worker's shards. Any number of workers may have written it."""
    weights, moments = get_state_dict(model, optimizers)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        state_dict_loader.load(state, checkpoint_id=str(folder))
    set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def save_model_folder(model: StreamChat, initial_model: Path, out: Path, *, writes: bool) -> None:
    """Gather the weights and write the StreamChat folder. All workers call it; the one with `writes` writes.

    Weights get the dtype that they have in the initial model.
    """
    dtypes = stored_dtypes(initial_model)
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if writes:
            weights[name] = full.to("cpu", dtypes.get(name, full.dtype))
    if not writes:
        return
    with torch.device("meta"):
        plain = StreamChat(model.config)
    for name, tensor in weights.items():
        path, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))
    save_folder(plain, out, tokenizer=initial_model)


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The dtype of each tensor in a StreamChat folder."""
    dtypes: dict[str, torch.dtype] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118
                dtypes[name] = reader.get_slice(name)[:0].dtype
    return dtypes


def local_bytes(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, int]:
    """Bytes of weights, gradients and moments on this worker."""

    def size(tensor: Tensor | None) -> int:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return 0 if local is None else local.numel() * local.element_size()

    moments = (
        v for o in optimizers for state in o.state.values() for v in state.values() if isinstance(v, Tensor)
    )
    return {
        "weights": sum(size(p) for p in model.parameters()),
        "gradients": sum(size(p.grad) for p in model.parameters()),
        "moments": sum(size(v) for v in moments),
    }
