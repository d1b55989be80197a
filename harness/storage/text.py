"""Text from files of unknown origin, made harmless for a terminal and a page."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Return a text in which what would steer a terminal or turn the direction of writing is spelled out.

    Line ends and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(each) for each in text)


def _spelled(character: str) -> str:
    kind = unicodedata.category(character)
    if character in "\n\t" or not (kind.startswith("C") or kind in ("Zl", "Zp")):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()
