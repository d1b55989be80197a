"""Write a working plugin and its test for `harness new attack NAME` and `harness new defense NAME`."""

from __future__ import annotations

import importlib.resources
import keyword
import re
import string
from pathlib import Path
from typing import Literal

from harness.types import HarnessError

Kind = Literal["attack", "defense"]


def write(kind: Kind, name: str, folder: Path) -> tuple[Path, Path]:
    """Write `NAME.py` and `test_NAME.py`, and return their paths; an existing file is never overwritten.

    Raises:
        HarnessError: the name cannot name a file, a file exists already, or the folder cannot be written.
    """
    stem = name.strip().lower().replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,60}", stem) or keyword.iskeyword(stem):
        raise HarnessError(
            f"{name!r} is no name for a file: letters, digits, - and _, a letter first (my-attack)",
            page="plugins",
        )
    class_name = "".join(part.capitalize() for part in stem.split("_") if part)
    words = {
        "title": class_name,
        "cls": class_name,
        "file": f"{stem}.py",
        "test": f"test_{stem}.py",
    }
    plugin, test = folder / words["file"], folder / words["test"]
    for path in (plugin, test):
        if path.exists():
            raise HarnessError(f"{path} is there already: choose another name, or --folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plugin.write_text(_filled(kind, words), encoding="utf-8")
        test.write_text(_filled("test", words), encoding="utf-8")
    except OSError as error:
        raise HarnessError(f"cannot write to {folder}: {error.strerror}") from error
    return plugin, test


def _filled(template: str, words: dict[str, str]) -> str:
    path = importlib.resources.files("harness.conformance").joinpath(
        "templates", f"{template}.py.txt"
    )
    return string.Template(path.read_text("utf-8")).substitute(words)
