"""FSDP2: each worker holds a shard of every weight, gradient and optimizer moment. Checkpoints are sharded too.

On GPUs weights are float32 and arithmetic is bfloat16. On CPUs everything is float32 (gloo), except with `autocast`.
"""

from __future__ import annotations

import functools
import warnings
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from model.checkpoint.folder import save_folder, weight_files
from model.network.layer import Layer
from model.network.streamchat import StreamChat
from training.optimise.objective import Objective
from training.run.recipe import Recipe

LEARNING = StateDictOptions(ignore_frozen_params=True)
# Keys and values are views of the projections' output. No code writes to them in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def make_mesh(device_type: str, world_size: int, local_size: int, recipe: Recipe) -> DeviceMesh:
    """The workers to shard over. `local_size`: workers of a node.

    With `hybrid_shard` and several full nodes, weights are sharded within a node and the same on every node, so that
    only gradients cross the network, once in a step. Otherwise they are sharded over all workers.
    """
    if recipe.hybrid_shard and local_size < world_size and world_size % local_size == 0:
        shape, names = (world_size // local_size, local_size), ("replicate", "shard")
        return init_device_mesh(device_type, shape, mesh_dim_names=names)
    return init_device_mesh(device_type, (world_size,))


def transformer_layers(model: StreamChat) -> list[nn.Module]:
    """The layers of the language model and the encoder. Each is sharded, checkpointed and compiled on its own."""
    return [*model.language.layers, *model.vision.encoder.encoder.layers]


def shard(objective: Objective, mesh: DeviceMesh, recipe: Recipe) -> None:
    """Apply torch.compile, activation checkpointing and FSDP2, in the order that they require.

    A layer is compiled as a whole, and checkpointing calls the compiled function again in the backward pass. A single
    worker on a CPU needs no shards, so its weights stay plain tensors.
    """
    on_gpu = mesh.device_type == "cuda"
    sharded = on_gpu or mesh.size() > 1
    param_dtype = torch.bfloat16 if on_gpu and recipe.bfloat16 else None
    # Rotary embeddings stay float32, so inputs of a layer are not cast.
    policy = MixedPrecisionPolicy(
        param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    # Without it each layer would be compiled apart, because of its number, until torch stops compiling.
    torch._dynamo.config.allow_unspec_int_on_nn_module = recipe.compile  # pyright: ignore[reportPrivateUsage]
    for layer in transformer_layers(objective.model):
        methods = ("forward", "forward_frames") if isinstance(layer, Layer) else ("forward",)
        for name in methods:
            method = getattr(layer, name)
            if recipe.compile:
                method = torch.compile(method, dynamic=True)
            if recipe.checkpoint_activations:
                method = functools.partial(checkpoint, method, use_reentrant=False)
            setattr(layer, name, method)
        if sharded:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
            if "forward_frames" in methods:
                register_fsdp_forward_method(layer, "forward_frames")
    if sharded:
        fully_shard(objective, mesh=mesh, mp_policy=policy)


def load_weights(model: StreamChat, folder: Path, device: torch.device) -> None:
    """Load weights into a sharded model on the meta device, as float32. Each worker reads only its shards.

    Raises ValueError if the folder lacks a tensor.
    """
    model.to_empty(device=device)
    model.vision.fill_buffers(device)
    parameters = dict(model.named_parameters())
    if missing := parameters.keys() - stored_dtypes(folder).keys():
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, the first is {min(missing)}")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns when there is a single worker
        state_dict_loader.load(parameters, storage_reader=HuggingFaceStorageReader(str(folder)))


def save_checkpoint(
    folder: Path,
    model: StreamChat,
    optimizers: list[torch.optim.Optimizer],
    group: dist.ProcessGroup | None = None,
) -> Future[Any]:
    """Copy this worker's shard of the weights that learn, and of their moments, and write it while training goes on.

    All workers call it, and their files make one checkpoint. Frozen weights are those of the initial model.
    `group`: with a back end for CPUs, used by nothing else meanwhile; None: the default one, if the caller waits.
    """
    weights, moments = get_state_dict(model, optimizers, options=LEARNING)
    state = {"model": weights, "optimizer": moments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns when there is a single worker
        future = state_dict_saver.async_save(state, checkpoint_id=str(folder), process_group=group)
    assert isinstance(future, Future)
    return future


def load_checkpoint(folder: Path, model: StreamChat, optimizers: list[torch.optim.Optimizer]) -> None:
    """Read a checkpoint into this worker's shards. Any number of workers may have written it."""
    weights, moments = get_state_dict(model, optimizers, options=LEARNING)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        state_dict_loader.load(state, checkpoint_id=str(folder))
    set_state_dict(
        model,
        optimizers,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=replace(LEARNING, strict=False),
    )


def load_trained_weights(folder: Path, model: StreamChat) -> int:
    """Read a checkpoint's weights into a whole model, which keeps its dtypes. Returns the number of tensors.

    Raises ValueError if the folder is no checkpoint of such a model.
    """
    try:
        saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    except OSError as error:
        raise ValueError(f"{folder} is no checkpoint: {error}") from error
    weights = {name: w for name, w in model.state_dict().items() if f"model.{name}" in saved}
    if not weights:
        raise ValueError(f"{folder} has no weights of this model; it has {', '.join(list(saved)[:3])}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        state_dict_loader.load({"model": weights}, checkpoint_id=str(folder), no_dist=True)
    return len(weights)


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
