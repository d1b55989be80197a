"""Files that are written whole or not at all, carry a checksum, and are never read when damaged.

records/KEY.json        what was found             timings/KEY.json     how long it took
progress/KEY/*.safetensors   attacked batches      failures/KEY.json    why there is no number
checkpoints/KEY.safetensors  trained weights       estimates/KEY.npy    fixed training versions
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from harness import keys
from harness.types import DamageError, HarnessError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader sees the old content or the new one.

    Raises:
        HarnessError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise HarnessError(
            f"cannot write {path}: {error.strerror or error}. "
            "Free space there, or name another folder with --results"
        ) from error


class Store:
    """The results folder, and beside it (or elsewhere) the cache of what can be made again."""

    def __init__(self, results: Path, cache: Path | None = None) -> None:
        self.results = results
        self.cache = cache or results

    def prepare(self) -> None:
        """Make the folders, and find out now rather than after an hour that they cannot be written."""
        for folder in {self.results, self.cache}:
            probe = folder / f".probe.{secrets.token_hex(4)}"
            write_atomic(probe, b"")
            probe.unlink(missing_ok=True)

    # --- JSON: records, timings, failures ---------------------------------------------------------

    def write_json(self, folder: str, name: str, value: Any) -> Path:
        body = keys.canonical(value)
        digest = hashlib.sha256(body).hexdigest()
        path = self.results / folder / f"{name}.json"
        pretty = msgspec.json.format(b'{"sha256":"%b","value":%b}' % (digest.encode(), body))
        write_atomic(path, pretty + b"\n")
        return path

    def read_json(self, folder: str, name: str, kind: type[T]) -> T | None:
        """The value, or None where there is no file.

        Raises:
            DamageError: the file is not what was written.
        """
        path = self.results / folder / f"{name}.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HarnessError(f"cannot read {path}: {error.strerror or error}") from error
        return read_json(path, content, kind)

    def names(self, folder: str, suffix: str = ".json") -> list[str]:
        path = self.results / folder
        return sorted(entry.name[: -len(suffix)] for entry in path.glob(f"[!.]*{suffix}"))

    def remove(self, folder: str, name: str) -> None:
        (self.results / folder / f"{name}.json").unlink(missing_ok=True)

    # --- tensors: checkpoints, attacked batches ---------------------------------------------------

    def checkpoint_path(self, name: str) -> Path:
        return self.cache / "checkpoints" / f"{name}.safetensors"

    def progress_folder(self, key: str) -> Path:
        return self.results / "progress" / key


def read_json(path: Path, content: bytes, kind: type[T]) -> T:
    """The checked value of a JSON file of the store."""
    try:
        outer = json.loads(content)
        body = keys.canonical(outer["value"])
        if hashlib.sha256(body).hexdigest() != outer["sha256"]:
            raise ValueError("its checksum does not match")
        return msgspec.convert(outer["value"], kind)
    except (ValueError, KeyError, TypeError, RecursionError, HarnessError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, reason: object) -> DamageError:
    return DamageError(
        f"{path} is damaged: {reason}. Delete it and run the same command again to make it anew"
    )


def set_aside(path: Path) -> Path:
    """Move a damaged file out of the way, beside itself."""
    aside = path.with_name(f"{path.name}.damaged-{secrets.token_hex(3)}")
    with contextlib.suppress(OSError):
        os.replace(path, aside)
    return aside


def _content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(keys.canonical(dict(metadata)))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(_uint8()).numpy().tobytes())
    return digest.hexdigest()


def _uint8() -> Any:
    import torch

    return torch.uint8


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file with a checksum over tensors and metadata in its header."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**metadata, "sha256": _content_digest(contiguous, metadata)}
    write_atomic(path, save(contiguous, header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `write_tensors` wrote. Never runs code.

    Raises:
        FileNotFoundError: there is none.
        DamageError: it is no safetensors file, or not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = dict(header["__metadata__"])
        stored = metadata.pop("sha256")
        tensors = load(content)
        if _content_digest(tensors, metadata) != stored:
            raise ValueError("its checksum does not match")
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, error) from error
    return tensors, metadata
