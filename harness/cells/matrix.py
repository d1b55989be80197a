"""What a run set out to do, kept beside the records so that `harness status` can say how far it is."""

from __future__ import annotations

import dataclasses

from harness.storage import keys

FOLDER = "matrices"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """One cell: the keys of its record, of its attacked images, and of what it trains."""

    key: str
    generation: str
    trainings: tuple[str, ...]
    label: str
    images: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """The cells of one command. The same command has the same name, so it is listed once."""

    started: str
    cells: tuple[Planned, ...]

    @property
    def name(self) -> str:
        return keys.key([cell.key for cell in self.cells])
