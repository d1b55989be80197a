"""`foolbox:Name`: the attacks of foolbox against any defense here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.attacks.libraries import library_attack
from harness.attacks.libraries.foolbox.attack import Foolbox, missing
from harness.attacks.libraries.foolbox.catalogue import SHEETS
from harness.registry import attacks


@attacks.bridge("foolbox")
def make(rest: str) -> Callable[..., Foolbox]:
    """Attacks of foolbox by their class names: `foolbox:LinfPGD`."""
    sheet = library_attack.sheet_of("foolbox", SHEETS, rest)

    def build(**parameters: Any) -> Foolbox:
        return Foolbox(name=rest, parameters=parameters)

    build.__doc__ = sheet.summary
    return build


def listing() -> list[tuple[str, str, str | None]]:
    """Return (name, summary, why it is refused or None) of each attack; import nothing."""
    return [
        (name, summary, refusal or missing(name) or None)
        for name, summary, refusal in library_attack.listing("foolbox", SHEETS)
    ]


make.listing = listing  # for `harness list attacks --all`: the engine imports no plugin
