"""The plan of a run, kept beside the records so that `harness status` can say how far the run is."""

from __future__ import annotations

import dataclasses

from harness.storage import keys

FOLDER = "matrices"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A planned cell: the keys of its record, of its attacked images, and of the models that it trains."""

    key: str
    generation: str
    trainings: tuple[str, ...]
    label: str
    images: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """The cells of one command. The same command has the same name, and so is listed once."""

    started: str
    cells: tuple[Planned, ...]

    @property
    def name(self) -> str:
        return keys.key([cell.key for cell in self.cells])
