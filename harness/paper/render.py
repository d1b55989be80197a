"""Turn records into tables and figures, protocol by protocol. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import msgspec

from harness.paper import protocol
from harness.paper import tables as paper_tables
from harness.paper.figures import draw
from harness.paper.measured import Results
from harness.paper.protocol import Profile, Protocol
from harness.storage.store import Store
from harness.types import HarnessError


def choose(names: Sequence[str]) -> list[Protocol]:
    """Return the protocols that a command names; `all` stands for all that come with the harness.

    Raises:
        HarnessError: there is no such protocol, or two files have the same name.
    """
    wanted: list[str] = []
    for name in names:
        wanted += protocol.names() if name == "all" else [name]
    tables = [protocol.load(name) for name in dict.fromkeys(wanted)]
    stems = [table.name for table in tables]
    for stem in stems:
        if stems.count(stem) > 1:
            raise HarnessError(f"two protocols are called {stem}: rename one of the files")
    return tables


def render(
    tables: Sequence[Protocol],
    profile: Profile,
    store: Store,
    *,
    say: Callable[[str], None] = click.echo,
) -> list[Path]:
    """Write tables and figures from the records alone; return their paths. Needs no torch."""
    results = Results(store)
    written: list[Path] = []
    for table in tables:
        if table.kind == "table":
            written += paper_tables.write(table, profile, results)
        else:
            written += draw.write(table, profile, results)
    for path in written:
        say(str(path))
    return written


REPRODUCED = "protocols"
"""The folder of the results that keeps the reproduced protocols, so that a report needs nothing else."""


class Reproduced(msgspec.Struct, frozen=True, kw_only=True):
    """A protocol and the profile that it was run with."""

    protocol: Protocol
    profile: Profile


def remember(tables: Sequence[Protocol], profile: Profile, store: Store) -> None:
    """Keep the protocols with the records."""
    for table in tables:
        store.write_json(REPRODUCED, table.name, Reproduced(protocol=table, profile=profile))


def reproduced(store: Store) -> tuple[list[Reproduced], list[str]]:
    """Return (the protocols that were reproduced into a results folder, a line for each damaged file).

    The paper's tables come first, then its figures, then other protocols.
    """
    found, damage = store.read_all(REPRODUCED, Reproduced)
    return sorted(found.values(), key=lambda each: protocol.order(each.protocol.name)), damage
