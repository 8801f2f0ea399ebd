"""A StreamChat folder: config.json, safetensors (sharded if large) with their index, tokenizer files.

`streamchat assemble` and training write it, the services load it. A tensor has the name of its parameter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.checkpoint.tokenizer import copy_tokenizer
from model.config import StreamChatConfig
from model.network.streamchat import StreamChat
from model.network.vision import VisionTower

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4_000_000_000


def plan_shards(sizes: Iterable[tuple[str, int]], shard_bytes: int) -> list[list[str]]:
    """Tensor names by shard, in order. A shard is larger than `shard_bytes` only if its one tensor is."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes:
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def shard_files(shards: list[list[str]]) -> list[str]:
    """File names of shards: `model.safetensors` for one, else `model-00001-of-00003.safetensors` and so on."""
    if len(shards) == 1:
        return [WEIGHTS]
    return [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]


def write_index(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    """Write the index from tensors to shards. For one shard there is none: an old one is removed."""
    if len(shards) == 1:
        (folder / INDEX).unlink(missing_ok=True)
        return
    weight_map = {
        name: file for names, file in zip(shards, shard_files(shards), strict=True) for name in names
    }
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def save_folder(
    model: StreamChat, folder: Path, *, tokenizer: Path | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `model` as a folder that the services load, with the tokenizer files of the folder `tokenizer`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    shards = plan_shards(sizes.items(), shard_bytes)
    for old in folder.glob("model*.safetensors"):
        old.unlink()
    for names, file in zip(shards, shard_files(shards), strict=True):
        _save_shard({name: tensors[name].cpu().contiguous() for name in names}, folder / file)
    write_index(folder, shards, sum(sizes.values()))
    model.config.save(folder)
    if tokenizer is not None:
        copy_tokenizer(tokenizer, folder)


def _save_shard(tensors: dict[str, Tensor], path: Path) -> None:
    """`save_file`, with the permissions of any new file: it would leave a file that other users cannot read."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, {"format": "pt"})
    path.chmod(mode)


def load_model(
    folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> StreamChat:
    """Read a StreamChat folder, tensor by tensor: the weights are in memory once. The model is in eval mode.

    `dtype` None keeps that of the files.

    Raises:
        FileNotFoundError: no such folder, or no weights in it.
        ValueError: a tensor is missing, unknown or of a wrong shape, or a file is damaged; names it.
    """
    config = StreamChatConfig.load(folder)
    with torch.device("meta"):
        model = StreamChat(config)
    _read_tensors(model, folder, dtype, device)
    model.vision.fill_buffers(torch.device(device))
    return model.eval()


def load_vision(
    folder: Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> VisionTower:
    """Read only the vision encoder of a StreamChat folder, in eval mode; raises as `load_model` does."""
    config = StreamChatConfig.load(folder)
    with torch.device("meta"):
        tower = VisionTower(config.vision)
    module = nn.ModuleDict({"vision": tower})
    _read_tensors(module, folder, dtype, device, only="vision.")
    tower.fill_buffers(torch.device(device))
    return tower.eval()


def _read_tensors(
    module: nn.Module, folder: Path, dtype: torch.dtype | None, device: torch.device | str, only: str = ""
) -> None:
    """Fill `module`, which is on the meta device, with the folder's tensors whose names start with `only`."""
    wanted = dict(module.named_parameters())
    loaded: set[str] = set()
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt", device=str(device)) as reader:
                for name in reader.keys():  # noqa: SIM118 - not a dict
                    if name.startswith(only):
                        _check_tensor(folder, name, wanted, tuple(reader.get_slice(name).get_shape()))
                        _assign(module, name, reader.get_tensor(name).to(dtype))
                        loaded.add(name)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or cut short: {error}") from error
    if missing := sorted(set(wanted) - loaded):
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}")


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files; raises FileNotFoundError when one is missing."""
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {INDEX}")
        return [folder / WEIGHTS]
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    files = [folder / file for file in sorted(set(index["weight_map"].values()))]
    if absent := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{folder}: its index names {absent[0]}, which is not there")
    return files


def _check_tensor(folder: Path, name: str, wanted: dict[str, nn.Parameter], shape: tuple[int, ...]) -> None:
    if name not in wanted:
        raise ValueError(f"{folder}: tensor {name} is unknown to its config.json")
    if shape != tuple(wanted[name].shape):
        raise ValueError(f"{folder}: tensor {name} has shape {shape}, wanted {tuple(wanted[name].shape)}")


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, nn.Parameter(tensor))
