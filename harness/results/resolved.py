"""A cell with every default written out: a record's key is the hash of this content.

A field that holds its default is left out of the JSON, so that a field added later does not change the keys
of earlier runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from harness.cells.cells import Precision
from harness.storage import keys
from harness.types import Randomness, ThreatModel


class Plugin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A plugin with all its parameters, as it was built."""

    name: str
    parameters: Mapping[str, object]
    """Every field, defaults included, as JSON values; an attack inside it is resolved in the same way."""
    code: str
    """The digest of the code that it runs."""
    kind: str = ""
    """The class of an attack or a defense: two classes of one file share their code, but not their key."""


class DatasetVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset's name and the digest of its images and labels."""

    name: str
    digest: str


class ResolvedTarget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that trained weights depend on."""

    engine: int
    dataset: DatasetVersion
    model: Plugin
    defense: Plugin
    training: Mapping[str, object]
    """The fields of the training plan; its inner attack is resolved too."""
    seed: int
    precision: Precision = "auto"

    @property
    def key(self) -> str:
        """The name of the checkpoint."""
        return keys.key(self)


class Resolved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that a cell's number depends on."""

    source: ResolvedTarget
    """The model on which the images are made: the target itself, or the source of a transfer attack."""
    randomness: Randomness
    """The randomness of the source's defense."""
    attack: Plugin
    threat: ThreatModel
    test: str
    """The digest of the test images and labels."""
    limit: int
    """The number of test images that are attacked."""
    max_queries: int | None
    target: ResolvedTarget
    target_randomness: Randomness
    draws: int

    @property
    def key(self) -> str:
        """The name of the record."""
        return keys.key(self)

    @property
    def generation_key(self) -> str:
        """The name of the attacked images, which is shared by cells that score them differently."""
        return keys.key({name: getattr(self, name) for name in _GENERATION})


_GENERATION = ("source", "randomness", "attack", "threat", "test", "limit", "max_queries")
