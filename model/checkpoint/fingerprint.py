"""A name for a vision encoder, made from its weights and sizes: who reads visual tokens must know whose they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

from model.checkpoint.tensor_files import stored_tensors
from model.config import StreamChatConfig

NUM_CHARACTERS = 12


def encoder_fingerprint(folder: Path) -> str:
    """Twelve hexadecimal characters, the same for folders whose vision encoders are the same.

    FileNotFoundError or ValueError when the folder is invalid.
    """
    digest = hashlib.sha256(repr(StreamChatConfig.load(folder).vision).encode())
    tensors = stored_tensors(folder)
    for name in sorted(name for name in tensors if name.startswith("vision.")):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        for data in tensor.chunks():
            digest.update(data)
    return digest.hexdigest()[:NUM_CHARACTERS]
