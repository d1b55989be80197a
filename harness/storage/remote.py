"""A store with a copy on an object store, so that machines without a shared folder can share work.

All work is done in the results folder. A finished file is published as a whole object, and fetched when its
path is asked for and the folder lacks it. An object store has neither leases nor renames, and none are
needed: an object's content is a function of its name, so a second publisher writes the same content. Every
file carries a checksum, which is checked when it is published and when it is fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.storage import store
from harness.storage.store import DAMAGED, TEMPORARY, Store, StoreError
from harness.types import HarnessError

EVERY = 60.0
"""Seconds between two searches of the folder for new files."""
_OWN = {"progress": "generation", "scores": "cell", "checkpoints": "key"}
"""The metadata field of a safetensors file that states its name, by kind of file."""
_WRONG = (store.DamagedFile, ValueError, KeyError, TypeError, AttributeError)
"""The exceptions that checking a damaged file raises."""


def opened(results: Path, cache: Path | None, url: str | None) -> Store:
    """Return the store in a folder, with a copy on an object store where a URL is given.

    Raises:
        HarnessError: the URL cannot be used (with the package to install).
    """
    return Store(results, cache) if url is None else RemoteStore(results, cache, url)


class RemoteStore(Store):
    """A results folder with a copy at `url`: s3://bucket/prefix, file:///folder, or any that fsspec knows."""

    def __init__(self, results: Path, cache: Path | None, url: str) -> None:
        super().__init__(results, cache)
        self._url = url.rstrip("/")
        self._system, self._root = _connect(self._url)
        # An object store puts a file whole or not at all; a folder does not.
        self._renames = "file" in self._system.protocol
        self._there: dict[str, set[str]] = {}
        self._states: dict[str, int] = {}

    @property
    def url(self) -> str:
        """The address of the object store."""
        return self._url

    def prepare(self) -> None:
        """Make the folders, and find out now whether they and the object store can be written."""
        super().prepare()
        probe = f"{self._root}/.probe.{secrets.token_hex(4)}"
        with self._reaching(probe):
            if self._renames:
                self._system.makedirs(self._root, exist_ok=True)
            self._system.pipe_file(probe, b"-")
            self._system.rm_file(probe)

    def refresh(self) -> None:
        """Forget the listings of the object store, because others have published since."""
        self._there.clear()

    # --- paths, fetched first -----------------------------------------------------------------------

    def fetch(self, path: Path) -> None:
        """Fetch a JSON file, and the timing of a record, where the object store has it and the folder not."""
        wanted = {"records": ("records", "timings"), "timings": ("timings",)}
        for folder in wanted.get(path.parent.name, ()):
            if not self._fetch(self.results / folder / path.name):
                return

    def checkpoint_path(self, name: str) -> Path:
        path = super().checkpoint_path(name)
        if not self._fetch(path):
            self._fetch(path.with_suffix(".state"))
        return path

    def estimates_path(self, name: str) -> Path:
        path = super().estimates_path(name)
        if self._fetch(path.with_suffix(".json")):
            self._fetch(path)
        return path

    def progress_folder(self, key: str) -> Path:
        return self._fetch_all(super().progress_folder(key))

    def scores_folder(self, key: str) -> Path:
        return self._fetch_all(super().scores_folder(key))

    def _fetch_all(self, folder: Path) -> Path:
        for name in sorted(self._listing(self._name(folder))):
            if name.endswith(".safetensors"):
                self._fetch(folder / name)
        return folder

    def _fetch(self, path: Path) -> bool:
        """Fetch a file where the folder lacks it; return whether the folder has it now.

        A damaged object is named, set aside, and not taken.
        """
        folder = self._name(path.parent)
        if path.exists():
            return True
        if path.name not in self._listing(folder):
            return False
        distant = f"{self._root}/{folder}/{path.name}"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
        store.make_folder(path.parent)
        try:
            with self._reaching(distant, missing_ok=True):
                self._system.get_file(distant, str(temporary))
            _check(temporary, path)
            os.replace(temporary, path)
        except FileNotFoundError:  # set aside or removed by another run
            self._listing(folder).discard(path.name)
            return False
        except _WRONG as error:
            aside = f"{path.name}{DAMAGED}{secrets.token_hex(3)}"
            with (
                contextlib.suppress(FileNotFoundError),  # another run was quicker
                self._reaching(distant, missing_ok=True),
            ):
                self._system.mv(distant, f"{self._root}/{folder}/{aside}")
            self._listing(folder).discard(path.name)
            reason = getattr(error, "reason", error)
            there = f"{self.url}/{folder}/{path.name}"
            self.noticed(f"{there} is damaged: {reason}. It was set aside as {aside}")
            return False
        except OSError as error:
            raise store.unwritable(path, error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return True

    def _name(self, folder: Path) -> str:
        base = self.cache if folder.parent == self.cache else self.results
        return folder.relative_to(base).as_posix()

    def _listing(self, folder: str) -> set[str]:
        """Return the names that were in a folder of the object store when it was first asked for."""
        if folder not in self._there:
            distant = f"{self._root}/{folder}"
            names: list[str] = []
            with contextlib.suppress(FileNotFoundError), self._reaching(distant, missing_ok=True):
                names = [str(name) for name in self._system.ls(distant, detail=False)]
            found = {name.rstrip("/").rpartition("/")[2] for name in names}
            self._there[folder] = {
                name for name in found if DAMAGED not in name and not name.startswith(".")
            }
        return self._there[folder]

    # --- publishing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish what is new every now and then, and at the end of the block.

        Raises:
            StoreError: the object store cannot be written at the end. All lies in the folder.
        """
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(EVERY):
                with contextlib.suppress(
                    StoreError
                ):  # may pass: a lasting error is raised at the end
                    self.publish()

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.publish()

    def publish(self) -> None:
        """Publish every finished file of the folder that the object store lacks.

        Raises:
            StoreError: a file cannot be published.
        """
        for batch in ("progress", "scores"):
            for folder in _folders(self.results / batch):
                self._put_all(folder, ".safetensors")
        # The files that readers look for first are published last.
        self._put_all(self.cache / "estimates", ".json")
        self._put_all(self.cache / "estimates", ".bytes")
        self._put_all(self.cache / "checkpoints", ".state")
        for path in self._put_all(self.cache / "checkpoints", ".safetensors"):
            self._remove(f"checkpoints/{path.stem}.state")
        self._put_all(self.results / "timings", ".json")
        for path in self._put_all(self.results / "records", ".json"):
            self._remove(f"scores/{path.stem}")  # they made the record

    def _put_all(self, folder: Path, suffix: str) -> list[Path]:
        """Publish the files of a folder that the object store lacks, and return them."""
        there = self._listing(self._name(folder))
        new = []
        for path in store.files(folder, suffix):
            try:
                changed = path.stat().st_mtime_ns if suffix == ".state" else 0
                if path.name in there and self._states.get(path.name, 0) == changed:
                    continue
                _check(path, path)
                self._put(path, f"{self._root}/{self._name(folder)}/{path.name}")
            except FileNotFoundError:  # it has served: scores of a record, a state of weights
                continue
            except _WRONG:  # the run finds and reports it
                continue
            except StoreError:
                if path.exists():
                    raise
                continue
            there.add(path.name)
            self._states[path.name] = changed
            new.append(path)
        return new

    def _put(self, path: Path, distant: str) -> None:
        with self._reaching(distant):
            if not self._renames:
                self._system.put_file(str(path), distant)
                return
            folder, _, name = distant.rpartition("/")
            half = f"{folder}/.{name}.{secrets.token_hex(4)}{TEMPORARY}"
            self._system.makedirs(folder, exist_ok=True)
            self._system.put_file(str(path), half)
            self._system.mv(half, distant)

    def _remove(self, name: str) -> None:
        folder, _, last = name.rpartition("/")
        if last in self._listing(folder) or self._there.pop(name, set()):
            with contextlib.suppress(FileNotFoundError), self._reaching(name, missing_ok=True):
                self._system.rm(f"{self._root}/{name}", recursive=True)
            self._listing(folder).discard(last)

    @contextlib.contextmanager
    def _reaching(self, what: str, *, missing_ok: bool = False) -> Iterator[None]:
        """Raise StoreError for any error of the object store's file system."""
        try:
            yield
        except Exception as error:
            if missing_ok and isinstance(error, FileNotFoundError):
                raise
            first = f"{type(error).__name__}: {error}".strip().split("\n")[0]
            raise StoreError(
                f"cannot reach {what} of {self.url}: {first}. Check the address and the credentials; "
                "what is done is kept in the results folder"
            ) from error


def _connect(url: str) -> tuple[Any, str]:
    import fsspec

    if "://" not in url:
        raise HarnessError(
            f"--store {url}: give a URL, such as s3://bucket/prefix or file:///folder"
        )
    try:
        # Others write too, so an old listing may be wrong.
        system, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        hint = "for S3: pip install 'robustness-harness[s3]'"
        raise HarnessError(f"--store {url}: {error} ({hint})") from error
    except Exception as error:  # each file system has its own words for a URL that is wrong
        raise HarnessError(f"--store {url}: {error}. Such as s3://bucket/prefix") from error
    return system, str(root).rstrip("/")


def _check(content: Path, path: Path) -> None:
    """Check that a file is what was written under the name of `path`.

    Raises:
        one of _WRONG: it is not. FileNotFoundError: there is none.
    """
    if path.suffix == ".bytes":
        stated = json.loads(path.with_suffix(".json").read_bytes())["sha256"]
        with open(content, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != stated:
                raise ValueError("its checksum does not match")
    elif path.suffix == ".json" and path.parent.name == "estimates":
        if "sha256" not in json.loads(content.read_bytes()):
            raise ValueError("it has no checksum")
    elif path.suffix == ".json":
        value = store.read_json(path, content.read_bytes(), dict[str, Any])
        if value.get("key") != path.stem:
            raise ValueError(f"it was written as {value.get('key')}.json")
    else:
        _, metadata = store.read_tensors(content)
        kind = path.parent.name if path.parent.name in _OWN else path.parent.parent.name
        field = "training" if path.suffix == ".state" else _OWN[kind]
        own = path.stem if kind == "checkpoints" else path.parent.name
        if metadata.get(field) != own:
            raise ValueError(f"it belongs to {metadata.get(field)}, not to {own}")


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
