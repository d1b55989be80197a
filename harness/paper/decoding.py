"""Decode TOML into typed values; refuse what does not fit with file, line, key and nearest allowed word."""

from __future__ import annotations

import re
import tomllib
import typing
from typing import Any, Literal, TypeVar

import msgspec

from harness.registry import nearest
from harness.types import HarnessError

T = TypeVar("T")


def decode(text: str, kind: type[T], file: str) -> T:
    """Return the typed value of a TOML text.

    Raises:
        HarnessError: the text does not fit the type (with file, line, key and the nearest allowed word).
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HarnessError(f"{file}: {error}", page="protocols") from None
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), raw, text, kind, file) from None


def _wrong(message: str, raw: Any, text: str, kind: Any, file: str) -> HarnessError:
    what, _, place = message.partition(" - at `")
    of_key = place.startswith("key` in `")  # a word that is no key of a dictionary
    path = place.removeprefix("key` in `").rstrip("`").removeprefix("$")
    path = _name_keys(path, raw)
    named = re.search(r"'([^']*)'" if of_key else r"field `([^`]+)`", what)
    key = named.group(1) if named and (of_key or "unknown" in what) else None
    line = line_of(text, f"{path}.{key}" if key else path)
    holder = _type_at(kind, path)
    hint = ""
    if key is not None and isinstance(holder, type) and issubclass(holder, msgspec.Struct):
        what, hint = f"{key!r} is not known here", nearest(key, holder.__struct_fields__)
    elif key is not None and of_key:
        words = _literals(typing.get_args(holder)[0])
        what, hint = f"{key!r} is not known here", nearest(key, words)
    elif named and "missing" in what:
        what = f"{named.group(1)!r} is missing here"
    choices = [word for word in _literals(holder) if isinstance(word, str)]
    if choices and "enum" in what:
        given = re.search(r"'([^']*)'", what)
        word = given.group(1) if given else ""
        what, hint = f"{word!r} does not fit", nearest(word, choices)
    where = f"{file}, line {line}" + (f", {path.lstrip('.')}" if path else "")
    return HarnessError(f"{where}: {what}" + (f": {hint}" if hint else ""), page="protocols")


def _name_keys(path: str, raw: Any) -> str:
    """Return the path with its keys: msgspec writes `[...]` for a key of a dictionary."""
    if "[...]" not in path:
        return path
    before, _, after = path.partition("[...]")
    value = _follow(raw, before)
    if isinstance(value, dict) and value:
        for key in value:
            candidate = f"{before}.{key}"
            if len(value) == 1 or _plausible(value[key], after):
                return _name_keys(candidate + after, raw)
    return before


def _plausible(value: Any, path: str) -> bool:
    return _follow(value, path) is not None if path else False


def _steps(path: str) -> list[str | int]:
    return [
        int(index) if index else word
        for word, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path)
    ]


def _follow(raw: Any, path: str) -> Any:
    for step in _steps(path):
        try:
            raw = raw[step]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _type_at(kind: Any, path: str) -> Any:
    """Return the type at a path, from which the allowed words are read; None where there is none."""
    for step in _steps(path):
        kind = _plain(kind)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is dict:
            kind = arguments[1]
        elif origin is list:
            kind = arguments[0]
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            kind = typing.get_type_hints(kind).get(str(step))
        else:
            return None
    return _plain(kind)


def _plain(kind: Any) -> Any:
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if len(options) == 1 and type(None) in typing.get_args(kind):
        return options[0]
    return kind


def _literals(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def line_of(text: str, path: str) -> int:
    """Return the line of a key such as `.rows[1].steps`, 1 where it cannot be found."""
    wanted = _steps(path)
    seen: dict[tuple[str, ...], int] = {}
    best = (0, 1)
    here: list[str | int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*(\[\[?)\s*([^\]]+?)\s*\]", line)
        if header:
            words = tuple(part.strip().strip("\"'") for part in header.group(2).split("."))
            here = list(words)
            if header.group(1) == "[[":
                seen[words] = seen.get(words, -1) + 1
                here.append(seen[words])
            for length in range(len(words) - 1, 0, -1):  # [rows.cells] is of the last [[rows]]
                if words[:length] in seen:
                    here.insert(length, seen[words[:length]])
        assigned = re.match(r"\s*([\w\"'.-]+?)\s*=", line)
        full = here + (
            [part.strip("\"'") for part in assigned.group(1).split(".")] if assigned else []
        )
        common = 0
        for mine, other in zip(full, wanted, strict=False):
            if mine != other:
                break
            common += 1
        if common == len(full) and common > best[0]:
            best = (common, number)
    return best[1]
