"""Two folders have one fingerprint exactly when their vision encoders are the same."""

from __future__ import annotations

import shutil
from pathlib import Path

from model.checkpoint.fingerprint import encoder_fingerprint
from model.checkpoint.folder import WEIGHTS
from model.checkpoint.tensor_files import stored_tensors
from model.config import SHIPPED_FOLDER


def changed(tmp_path: Path, prefix: str) -> Path:
    """A copy of the shipped model with another byte in a tensor of that part."""
    folder = tmp_path / prefix
    shutil.copytree(SHIPPED_FOLDER, folder)
    tensors = stored_tensors(folder)
    tensor = next(
        tensors[name] for name in sorted(tensors) if name.startswith(prefix) == (prefix == "vision.")
    )
    file = folder / WEIGHTS
    data = bytearray(file.read_bytes())
    data[tensor.start] ^= 1
    file.write_bytes(data)
    return folder


def test_only_the_vision_encoder_counts(tmp_path: Path) -> None:
    shipped = encoder_fingerprint(SHIPPED_FOLDER)
    assert encoder_fingerprint(changed(tmp_path, "vision.")) != shipped
    assert encoder_fingerprint(changed(tmp_path, "other")) == shipped
