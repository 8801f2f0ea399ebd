"""FSDP2: each worker holds its share of every weight, gradient and moment; checkpoints are sharded likewise.

On GPUs weights are float32 and the arithmetic bfloat16; on CPUs all is float32 (gloo), but for `autocast`.
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

# Keys and values are views of what the projections gave; nobody writes to them in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def transformer_layers(model: StreamChat) -> list[nn.Module]:
    """The layers of language model and encoder: what is gathered, checkpointed and compiled one by one."""
    return [*model.language.layers, *model.vision.encoder.encoder.layers]


def shard(objective: Objective, mesh: DeviceMesh, recipe: Recipe) -> None:
    """Apply activation checkpointing, torch.compile and FSDP2, in the order in which they must be.

    A worker that is alone on a CPU has nothing to share: its weights stay plain.
    """
    on_gpu = mesh.device_type == "cuda"
    shares = on_gpu or mesh.size() > 1
    half = torch.bfloat16 if on_gpu and recipe.bfloat16 else None
    # Rotations stay float32: so nothing that goes into a layer is cast on its way.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in transformer_layers(objective.model):
        methods = ("forward", "forward_frames") if isinstance(layer, Layer) else ("forward",)
        if recipe.checkpoint_activations:
            for name in methods:
                again = functools.partial(checkpoint, getattr(layer, name), use_reentrant=False)
                setattr(layer, name, again)
        if recipe.compile:
            layer.compile()
        if shares:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
            if "forward_frames" in methods:
                register_fsdp_forward_method(layer, "forward_frames")
    if shares:
        fully_shard(objective, mesh=mesh, mp_policy=policy)


def load_weights(model: StreamChat, folder: Path, device: torch.device) -> None:
    """Give a sharded model, built without memory, its weights: one tensor at a time, float32, each worker its share."""
    model.to_empty(device=device)
    model.vision.fill_buffers(device)
    wanted = dict(model.named_parameters())
    with torch.no_grad():
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 - not a dict
                    _copy(wanted.pop(name), reader.get_tensor(name))
    if wanted:
        raise ValueError(f"{folder}: {len(wanted)} tensors are missing, the first is {min(wanted)}")


def _copy(parameter: Tensor, whole: Tensor) -> None:
    whole = whole.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        # Everyone has read the tensor: nobody need send it.
        whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(whole)


def save_checkpoint(folder: Path, model: StreamChat, optimizers: list[torch.optim.Optimizer]) -> None:
    """Write this worker's share of weights and moments; all workers call it, and their files make one checkpoint."""
    weights, moments = get_state_dict(model, optimizers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a worker alone is told that it is alone
        state_dict_saver.save({"model": weights, "optimizer": moments}, checkpoint_id=str(folder))


def load_checkpoint(folder: Path, model: StreamChat, optimizers: list[torch.optim.Optimizer]) -> None:
    """Read a checkpoint, made by any number of workers, into this worker's shares."""
    weights, moments = get_state_dict(model, optimizers)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        state_dict_loader.load(state, checkpoint_id=str(folder))
    set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def save_model_folder(model: StreamChat, start: Path, out: Path, *, writes: bool) -> None:
    """Gather the weights and write the StreamChat folder; all workers call it, one `writes`.

    Weights get the precision that they have in the folder that training started from.
    """
    kinds = stored_dtypes(start)
    whole: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if writes:
            whole[name] = full.to("cpu", kinds.get(name, full.dtype))
    if not writes:
        return
    with torch.device("meta"):
        plain = StreamChat(model.config)
    for name, tensor in whole.items():
        path, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))
    save_folder(plain, out, tokenizer=start)


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The precision of each tensor in a StreamChat folder."""
    kinds: dict[str, torch.dtype] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118
                kinds[name] = reader.get_slice(name)[:0].dtype
    return kinds


def local_bytes(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, int]:
    """Bytes that this worker holds of weights, gradients and moments."""

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
