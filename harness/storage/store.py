"""Store files that are written whole or not at all, carry a checksum, and are never read when damaged.

records/KEY.json        what was found             timings/KEY.json     how long it took
progress/KEY/*.safetensors   attacked batches      failures/KEY.json    why there is no number
scores/KEY/*.safetensors     scored batches        leases/, matrices/           who works on what
checkpoints/KEY.safetensors  trained weights       estimates/KEY.bytes  fixed training versions
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from harness.storage import keys
from harness.types import DamageError, HarnessError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TEMPORARY = ".tmp"
DAMAGED = ".damaged-"
MARKER = ".harness-results"
"""The file that marks a folder of the store; `harness clean` deletes only in such folders."""
_MARK = b"This folder is written by harness; `harness clean` deletes only in such folders.\n"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


class StoreError(HarnessError):
    """The store itself cannot be read or written: no cell can go on."""


class DamagedFile(DamageError):
    """A file of the store is not what was written. `path` is the file."""

    def __init__(self, path: Path, reason: object) -> None:
        first = f"{reason}".strip().split("\n")[0]
        super().__init__(
            f"{path} is damaged: {first}. The command that made it sets it aside and makes it anew",
            page="scaling",
        )
        self.path = path
        self.reason = first


def damaged(path: Path, reason: object) -> DamagedFile:
    """Return the error to raise for a file that is not what was written."""
    return DamagedFile(path, reason)


def set_aside(path: Path) -> Path:
    """Rename a damaged file within its folder, and return its new path.

    Raises:
        StoreError: it cannot be moved.
    """
    aside = path.with_name(f"{path.name}{DAMAGED}{secrets.token_hex(3)}")
    try:
        os.replace(path, aside)
    except FileNotFoundError:  # another run was quicker
        return aside
    except OSError as error:
        raise StoreError(f"cannot set {path} aside: {_why(error)}. Delete it") from error
    return aside


# --- writing --------------------------------------------------------------------------------------


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader sees the old content or the new one.

    Its folder is created, but not the one above it: a results folder that vanished during a run (a share
    that was unmounted) is not silently created again on another disk.

    Raises:
        StoreError: the folder cannot be written, has vanished, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise unwritable(path, error) from error


def make_folder(path: Path) -> None:
    """Create a folder, and the folders above it.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def remove(path: Path) -> None:
    """Delete a file that may be gone already.

    Raises:
        StoreError: it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot delete {path}: {_why(error)}") from error


def unwritable(path: Path, error: OSError) -> StoreError:
    """Return the error to raise for a file that cannot be written."""
    return StoreError(
        f"cannot write {path}: {_why(error)}. "
        "Free space there, or name another folder with --results"
    )


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of the store.

    Raises:
        FileNotFoundError: there is none. StoreError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> StoreError:
    """Return the error to raise for a file or folder that cannot be read."""
    return StoreError(f"cannot read {path}: {_why(error)}")


def files(folder: Path, suffix: str) -> list[Path]:
    """Return the finished files of a folder with this suffix, in order; none where there is no folder.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
    return [folder / name for name in names if name.endswith(suffix) and name[0] != "."]


class Store:
    """The results folder, and the cache of files that can be made again (by default the same folder)."""

    def __init__(self, results: Path, cache: Path | None = None) -> None:
        self.results = results
        self.cache = cache or results
        self.noticed: Callable[[str], object] = lambda line: print(line, file=sys.stderr)
        """Called with a line for each damaged file that was not taken."""
        self._prepared = False

    # --- for stores with a copy elsewhere to override -----------------------------------------------

    @property
    def url(self) -> str | None:
        """The address of the store's copy elsewhere; None for a folder alone."""
        return None

    def refresh(self) -> None:
        """Forget the listings of the copy elsewhere, because others have published since."""

    def publishing(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which finished files are published from time to time, and at its end."""
        return contextlib.nullcontext()

    def fetch(self, path: Path) -> None:
        """Fetch a JSON file from the copy elsewhere, where the folder lacks it."""

    # --- preparing ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Create the folders and test that they can be written, so that a run does not fail after an hour.

        Raises:
            StoreError: one of them cannot be created or written.
        """
        for folder in {self.results, self.cache}:
            make_folder(folder)
            probe = folder / f".probe.{secrets.token_hex(4)}"
            write_atomic(probe, b"")
            remove(probe)
            if not (folder / MARKER).exists():
                write_atomic(folder / MARKER, _MARK)
        self._prepared = True

    # --- JSON: records, timings, failures ---------------------------------------------------------

    def json_path(self, folder: str, name: str) -> Path:
        """Return the path of a value in the results folder; the file need not exist.

        Raises:
            HarnessError: the name could lead out of the folder.
        """
        for part in (folder, name):
            if not _NAME.fullmatch(part):
                raise HarnessError(
                    f"{part!r} cannot name a file of the results folder: letters, digits, _ - . only"
                )
        return self.results / folder / f"{name}.json"

    def has(self, folder: str, name: str) -> bool:
        """Return whether there is such a value; one that only the copy elsewhere has is fetched."""
        path = self.json_path(folder, name)
        self.fetch(path)
        return path.exists()

    def write_json(self, folder: str, name: str, value: Any) -> Path:
        path = self.json_path(folder, name)
        if not self._prepared:
            self.prepare()
        write_atomic(path, render_json(value))
        return path

    def read_json(self, folder: str, name: str, kind: type[T]) -> T | None:
        """Return the value, or None where there is no file.

        Raises:
            DamageError: the file is not what was written, or was written under another name.
            StoreError: it cannot be read.
        """
        path = self.json_path(folder, name)
        self.fetch(path)
        try:
            content = read_bytes(path)
        except FileNotFoundError:
            return None
        value = read_json(path, content, kind)
        own = getattr(value, "key", name)
        if own != name:
            raise damaged(path, f"it was written as {own}.json")
        return value

    def read_spare(self, folder: str, name: str, kind: type[T]) -> T | None:
        """Return as `read_json` a value that the caller can make again; a damaged file is set aside."""
        try:
            return self.read_json(folder, name, kind)
        except DamagedFile as error:
            set_aside(error.path)
            return None

    def read_all(self, folder: str, kind: type[T]) -> tuple[dict[str, T], list[str]]:
        """Return every value of a folder by its name, and a line for each damaged or foreign file.

        Such a file does not keep the others from being read.

        Raises:
            StoreError: the folder cannot be read.
        """
        found: dict[str, T] = {}
        problems: list[str] = []
        for name in self.names(folder):
            try:
                value = self.read_json(folder, name, kind)
            except DamagedFile as error:
                problems.append(f"{error.path} is damaged: {error.reason}")
            except HarnessError as error:  # a folder, a name that the store never gives
                problems.append(
                    f"{self.results / folder / name}.json is no file of the store: {error}"
                )
            else:
                if value is not None:
                    found[name] = value
        return found, problems

    def names(self, folder: str, suffix: str = ".json") -> list[str]:
        return [path.name[: -len(suffix)] for path in files(self.results / folder, suffix)]

    def remove(self, folder: str, name: str) -> None:
        remove(self.json_path(folder, name))

    # --- tensors: checkpoints, attacked and scored batches ----------------------------------------

    def checkpoint_path(self, name: str) -> Path:
        return self.cache / "checkpoints" / f"{name}.safetensors"

    def estimates_path(self, name: str) -> Path:
        return self.cache / "estimates" / f"{name}.bytes"

    def progress_folder(self, key: str) -> Path:
        return self.results / "progress" / key

    def scores_folder(self, key: str) -> Path:
        return self.results / "scores" / key


def render_json(value: Any) -> bytes:
    """Return the bytes of a JSON file of the store: a value and the checksum of its canonical form."""
    body = keys.canonical(value)
    digest = hashlib.sha256(body).hexdigest()
    return msgspec.json.format(b'{"sha256":"%b","value":%b}' % (digest.encode(), body)) + b"\n"


def read_json(path: Path, content: bytes, kind: type[T]) -> T:
    """Return the checked value of a JSON file of the store.

    Raises:
        DamagedFile: it is not what was written.
    """
    try:
        outer = json.loads(content)
        if not isinstance(outer, dict) or outer.keys() != {"sha256", "value"}:
            raise ValueError("it is no file of this store")
        body = keys.canonical(outer["value"])
        if hashlib.sha256(body).hexdigest() != outer["sha256"]:
            raise ValueError("its checksum does not match")
        return msgspec.convert(outer["value"], kind)
    except Exception as error:  # whatever a damaged file makes its readers raise
        raise damaged(path, error) from error


# --- tensors --------------------------------------------------------------------------------------


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
    """Write a safetensors file with a checksum over tensors and metadata in its header.

    Raises:
        StoreError: it cannot be written.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {**metadata, "sha256": _content_digest(contiguous, metadata)}
    write_atomic(path, _sorted_header(save(contiguous, facts)))


def _sorted_header(content: bytes) -> bytes:
    """Return the same safetensors file with a sorted header: the library's own order differs between runs."""
    end = 8 + int.from_bytes(content[:8], "little")
    ordered = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    ordered += b" " * (-len(ordered) % 8)
    return len(ordered).to_bytes(8, "little") + ordered + content[end:]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of a file that `write_tensors` wrote. Code in a file is never run.

    Raises:
        FileNotFoundError: there is none. StoreError: it cannot be read.
        DamagedFile: it is no safetensors file, or not what was written.
    """
    from safetensors.torch import load

    content = read_bytes(path)
    # A safetensors file begins with the length of its header, which may read like a pickle's mark.
    marks = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if content[:2] in marks and content[8:9] != b"{":
        raise damaged(path, "it is a pickle, which could run code: weights are read as safetensors")
    try:
        metadata = header(content)
        stored = metadata.pop("sha256", None)
        if stored is None:
            raise ValueError("it has no checksum: the harness did not write it")
        tensors = load(content)
        if _content_digest(tensors, metadata) != stored:
            raise ValueError("its checksum does not match")
    except Exception as error:  # whatever a damaged file makes its readers raise
        raise damaged(path, error) from error
    return tensors, metadata


def header(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        ValueError: the content is no safetensors file of the harness.
    """
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= len(content) - 8:  # the tensors may be left out
        raise ValueError("it is no safetensors file, or was cut short")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__")
    if not isinstance(metadata, dict):
        raise ValueError("it has no metadata: the harness did not write it")
    return {str(name): str(value) for name, value in metadata.items()}
