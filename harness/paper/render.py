"""Records -> tables and figures, protocol by protocol. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """The protocols that a command names; `all` is all that come with the harness."""
    wanted: list[str] = []
    for name in names:
        wanted += protocol.names() if name == "all" else [name]
    tables = [protocol.load(name) for name in dict.fromkeys(wanted)]
    stems = [table.name for table in tables]
    for stem in stems:
        if stems.count(stem) > 1:
            raise HarnessError(f"two protocols are called {stem}: rename one of the files")
    return tables


def results_folder(words: Mapping[str, Any], profile: Profile) -> Path:
    """Where a command's results lie."""
    given: Path | None = words["results"]
    return given or Path("results/runs") / profile.name


def render(
    tables: Sequence[Protocol], profile: Profile, store: Store, *, say: Any = click.echo
) -> list[Path]:
    """Tables and figures from the records alone. Needs no torch."""
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
"""Folder of the results that keeps what was reproduced, so that a report needs nothing else."""


class Reproduced(msgspec.Struct, frozen=True, kw_only=True):
    """A protocol and the profile that it was run with."""

    protocol: Protocol
    profile: Profile


def remember(tables: Sequence[Protocol], profile: Profile, store: Store) -> None:
    """Keep the protocols with the records."""
    for table in tables:
        store.write_json(REPRODUCED, table.name, Reproduced(protocol=table, profile=profile))


def reproduced(store: Store) -> tuple[list[Reproduced], list[str]]:
    """Return all that was reproduced into a results folder, the paper's tables first, then its figures; and
    a line for each file that is damaged."""
    found, damage = store.read_all(REPRODUCED, Reproduced)
    return sorted(found.values(), key=lambda each: protocol.order(each.protocol.name)), damage


def command(**words: Any) -> int:
    """`harness reproduce --render`. Returns the exit status."""
    tables = choose(words["names"])
    profile = protocol.profile(words["profile"])
    folder = results_folder(words, profile)
    if not (folder / "records").is_dir():
        raise HarnessError(f"no records in {folder}: leave out --render to make some")
    render(tables, profile, Store(folder))
    return 0
