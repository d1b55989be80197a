"""A cache of compiled code that nobody else can write: what is loaded from it runs in this process.

A file lies in it as STEM-DIGEST.so, DIGEST being that of its content, so that one rename puts file and
checksum in place together. What is cut short, changed, or could have been written by somebody else is
deleted and built again, never loaded.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

_OPEN = stat.S_IWGRP | stat.S_IWOTH


def folder() -> Path:
    """Return the folder of compiled code, made where it is missing.

    One of this user's that others could write until now is closed to them and emptied.

    Raises:
        OSError: it cannot be made.
        RuntimeError: it, or a folder above it, belongs to or can be replaced by another user.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = cache / "robustness-harness"
    found.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = found.resolve()
    facts = found.stat()
    if facts.st_uid == os.getuid() and facts.st_mode & _OPEN:
        found.chmod(0o700)
        for path in found.glob("*.so"):
            path.unlink(missing_ok=True)
    for each in (found, *found.parents):
        if not _is_closed(each):
            raise RuntimeError(
                f"another user can write {each}, and what lies there would run as you: close it "
                "(chmod go-w), or name another folder with XDG_CACHE_HOME"
            )
    return found


def find(place: Path, stem: str) -> Path | None:
    """Return the file that `keep` put there and nobody has changed since; bad ones are deleted."""
    good = None
    for path in sorted(place.glob(f"{stem}*.so")):
        facts = path.lstat()
        sound = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.getuid()
        if sound and not facts.st_mode & _OPEN and path.name == _name(stem, path.read_bytes()):
            good = path
        else:
            path.unlink(missing_ok=True)
    return good


def keep(place: Path, stem: str, build: Callable[[Path], object]) -> Path:
    """Return the file that `build(path)` makes, put in place whole and on disk, or not at all.

    Raises:
        OSError: it cannot be written. Whatever `build` raises.
    """
    with tempfile.TemporaryDirectory(dir=place) as work:
        made = Path(work) / f"{stem}.so"
        build(made)
        made.chmod(0o700)
        content = made.read_bytes()
        _flush(made)
        kept = place / _name(stem, content)
        os.replace(made, kept)
    _flush(place)
    return kept


def _name(stem: str, content: bytes) -> str:
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:32]}.so"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # file systems that do not flush folders
            os.fsync(handle)
    finally:
        os.close(handle)


def _is_closed(place: Path) -> bool:
    """Return whether no other user but root can change or replace what lies in a folder.

    A group of the user's own, of the same number, has no other member; in a sticky folder, such as /tmp,
    nobody replaces what is another's.
    """
    facts = place.stat()
    if facts.st_uid not in (0, os.getuid()):
        return False
    if facts.st_mode & stat.S_ISVTX:
        return True
    own_group = facts.st_uid == facts.st_gid == os.getuid()
    return not facts.st_mode & (stat.S_IWOTH if own_group else _OPEN)
