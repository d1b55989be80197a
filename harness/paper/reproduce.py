"""`harness reproduce`: turn protocols into cells, cells into records, and these into tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import click

from harness import registry
from harness.cells.cells import Cell
from harness.evaluation.plans import Plan, plan
from harness.evaluation.runner import Runner
from harness.paper import expansion
from harness.paper.expansion import Place
from harness.paper.measured import CELLS, cell_name
from harness.paper.protocol import Profile, Protocol
from harness.paper.render import remember, render
from harness.results.records import Failure, Record
from harness.results.tables import load
from harness.spec import build, parse
from harness.storage.store import Store
from harness.targets.source import TargetSource
from harness.types import HarnessError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The tables of a command with their cells, ready to run."""

    tables: list[Protocol]
    profile: Profile
    datasets: dict[str, str]
    cells: list[Cell]


def prepare(tables: list[Protocol], profile: Profile, model_store: TargetSource) -> Job:
    """Return the cells of all tables, each once; names of plugins are checked before anything runs.

    Raises:
        HarnessError: a plugin or a parameter does not exist (with the place in the protocol).
    """
    datasets = available(profile, model_store, tables)
    places: list[Place] = []
    for table in tables:
        found = expansion.expand(table, profile, datasets)
        check_plugins(table, found)
        places += found
    return Job(tables=tables, profile=profile, datasets=datasets, cells=expansion.unique(places))


def available(
    profile: Profile, model_store: TargetSource, tables: Sequence[Protocol]
) -> dict[str, str]:
    """Return the first available stand-in of each dataset that has some; the last where none is available."""
    used = {
        expansion.merged(table, row, column).dataset
        for table in tables
        for row in table.rows
        for column in table.columns
    } | {name for table in tables for name in table.datasets}
    chosen: dict[str, str] = {}
    there: dict[str, bool] = {}
    for dataset, options in profile.datasets.items():
        if dataset not in used:
            continue
        for name in options:
            if name not in there:
                there[name] = len(options) == 1 or _is_there(model_store, name)
            if there[name]:
                break
        chosen[dataset] = name
        if name != options[0]:
            model_store.reporter.say(f"{options[0]} is not there: {name} stands in for {dataset}")
    return chosen


def _is_there(model_store: TargetSource, name: str) -> bool:
    try:
        model_store.dataset(name, "test")
    except HarnessError:
        return False
    return True


def check_plugins(table: Protocol, places: Sequence[Place]) -> None:
    """Raise the registry's HarnessError for a name or parameter that no plugin has."""
    for place in places:
        for cell in place.cells[:1]:
            try:
                build(cell.attack, registry.attacks)
                build(cell.target.defense, registry.defenses)
                registry.models.get(cell.target.model.name)
                if cell.target.training.inner is not None:
                    build(cell.target.training.inner, registry.attacks)
                registry.datasets.get(cell.target.dataset)
            except HarnessError as error:
                row, column = table.rows[place.row], table.columns[place.column]
                where = f"{table.name}.toml, row {' / '.join(row.labels)}, column {column.title}"
                raise HarnessError(f"{where}: {error}") from error
    for name in table.defenses:
        build(parse(name), registry.defenses)


def plans(job: Job, model_store: TargetSource) -> tuple[list[Plan], list[Failure]]:
    """Return (a plan for each cell that can be run here, a failure for each other cell)."""
    ready, refused = [], []
    for cell in job.cells:
        try:
            ready.append(plan(cell, model_store))
        except HarnessError as error:  # a dataset that is not here, an attack that cannot serve
            refused.append(
                Failure(key=cell_name(cell), cell=cell, reason=str(error), kind="refused")
            )
    return ready, refused


def run(job: Job, runner: Runner) -> list[Record | Failure]:
    """Run the missing cells, and note which record answers which cell.

    Raises:
        Interrupted: a signal came; finished work is kept.
    """
    store = runner.store
    ready, refused = plans(job, runner.model_store)
    for failure in refused:
        store.write_json("failures", failure.key, failure)
        store.write_json(CELLS, cell_name(failure.cell), failure.key)
    for each in ready:
        _note(store, each)
    return [*runner.run([each.cell for each in ready]), *refused]


def _note(store: Store, each: Plan) -> None:
    name = cell_name(each.cell)
    if store.read_spare(CELLS, name, str) != each.key:
        store.write_json(CELLS, name, each.key)
    store.remove("failures", name)  # left from a time when the dataset was not available


def show_plan(job: Job, model_store: TargetSource) -> tuple[list[Plan], list[Failure]]:
    """Print every cell and whether its record exists (`--dry-run`); return the missing and refused cells."""
    ready, refused = plans(job, model_store)
    store = model_store.store
    missing = []
    click.echo(f"profile {job.profile.name}: {job.profile.summary} ({job.profile.budget})")
    for each in ready:
        state = "there" if store.has("records", each.key) else "missing"
        if state == "missing":
            missing.append(each)
        cell = each.cell
        trained = "" if model_store.is_trained(cell.target) else ", not trained yet"
        click.echo(
            f"  {state:8}{cell.target.dataset}, {cell.target.model}, {cell.target.label}, "
            f"seed {cell.target.seed}: {cell.attack}, epsilon {cell.threat.epsilon:.4g}, "
            f"{cell.limit or 'all'} images{trained if state == 'missing' else ''}"
        )
    for failure in refused:
        click.echo(
            f"  refused {failure.cell.target.dataset}, {failure.cell.attack}: {failure.reason}"
        )
    used = len(ready) + len(refused)
    click.echo(
        f"{used} cells for {', '.join(table.name for table in job.tables)}: "
        f"{len(ready) - len(missing)} there, {len(missing)} missing, {len(refused)} refused"
    )
    return missing, refused


def reproduce(
    tables: list[Protocol], profile: Profile, runner: Runner, *, dry_run: bool = False
) -> int:
    """Run the cells that the tables still need, draw the tables, and return the exit status.

    With `dry_run`, only print the cells that are needed.

    Raises:
        Interrupted: a signal came; finished work is kept.
    """
    from harness.evaluation import calibrate
    from harness.paper.figures import features

    model_store = runner.model_store
    job = prepare(tables, profile, model_store)
    if dry_run:
        missing, _ = show_plan(job, model_store)
        click.echo(calibrate.estimate(missing, runner).text())
        return 0
    remember(tables, profile, runner.store)
    results = run(job, runner)
    for table in tables:
        features.prepare(table, profile, job.datasets, runner)
    features.prepare_gallery(job.cells, load(runner.store).records, runner)
    render(tables, profile, runner.store)
    failed = [result for result in results if isinstance(result, Failure)]
    for failure in failed:
        click.echo(
            f"{failure.kind}: {failure.cell.attack} on {failure.cell.target.label}, "
            f"{failure.cell.target.dataset}: {failure.reason}"
        )
    if model_store.damage or any(failure.kind == "damaged" for failure in failed):
        return 1
    return 2 if failed else 0
