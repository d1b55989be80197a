"""`harness audit`, `verify`, `convergence` and `list`: words to work, findings to print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from harness import registry
from harness.audit import battery, convergence, verify
from harness.cells import defaults
from harness.cells.cells import Cell, Target
from harness.cli import engine
from harness.evaluation.runner import Runner
from harness.results import flags, summaries
from harness.spec import parse
from harness.storage import store
from harness.storage.store import Store
from harness.targets import objects, own_models
from harness.types import HarnessError, ThreatModel


def _target_and_ball(words: Mapping[str, Any]) -> tuple[Target, ThreatModel]:
    dataset = words["dataset"]
    epsilon = words["epsilon"] if words["epsilon"] is not None else defaults.epsilon(dataset)
    overrides = {"epochs": words["epochs"], **dict(words["training_options"])}
    if words["epsilon"] is not None:
        overrides.setdefault("epsilon", epsilon)
    target = engine.target_of(
        words["defense"],
        dataset=dataset,
        model=own_models.specification(
            parse(words["model"] or defaults.of(dataset)["model"]),
            weights=words["weights"],
            normalisation=words["normalisation"],
        ),
        training=words["training"],
        seed=words["seed"],
        plan_overrides=overrides,
        defense_options=dict(words["defense_options"]),
        precision=words["precision"],
    )
    return target, ThreatModel(epsilon=epsilon, norm=words["norm"])


def _store(words: Mapping[str, Any]) -> Store:
    opened = Store(words["results"], words["cache"])
    opened.prepare()
    return opened


def audit(**words: Any) -> int:
    """`harness audit`. Returns the exit status."""
    target, threat = _target_and_ball(words)
    budget = battery.seconds(words["budget"])

    def work(runner: Runner) -> int:
        found, page = battery.Battery(
            target=target,
            threat=threat,
            workshop=runner.workshop,
            budget=budget,
            draws=words["draws"],
            limit=words["limit"],
            scale=words["budget_scale"],
        ).run()
        click.echo(page)
        click.echo(f"verdict: {runner.store.results / 'audits' / found.key}.md and .json")
        raised = {flag for each in found.flags.values() for flag in each}
        return flags.strict_status(raised) if words["strict"] else 0

    return engine.session(_store(words), {"batch_size": 50, **words}, work)


def check(**words: Any) -> int:
    """`harness verify`. Returns the exit status: 1 where something is contradicted or not there."""
    results: Path = words["results"]
    if not (results / "records").is_dir():
        raise HarnessError(f"no records in {results}: `harness run` makes some")
    opened = Store(results, words["cache"])

    def work(runner: Runner) -> int:
        workshop = runner.workshop
        findings = verify.verify(workshop, words["keys"], workshop.reporter, draws=words["draws"])
        for finding in findings:
            line = f"{finding.status} {finding.key} {finding.title}"
            click.echo(f"{line}: {finding.summary}" if finding.summary else line)
            for reason in finding.reasons:
                click.echo(f"  {reason}")
        for trusted in sorted({each for finding in findings for each in finding.trusted}):
            click.echo(f"taken on trust: {trusted}")
        counts = [
            f"{sum(f.status == status for f in findings)} {status}"
            for status in ("verified", "contradicted", "unverifiable")
        ]
        click.echo(", ".join(counts))
        return 0 if all(finding.status == "verified" for finding in findings) else 1

    return engine.session(opened, {"batch_size": 128, **words}, work)


def curves(**words: Any) -> int:
    """`harness convergence`. Returns the exit status."""
    target, threat = _target_and_ball(words)
    axes = {axis: _numbers(words[axis + "_values"]) for axis in convergence.AXES}
    axes = {axis: values for axis, values in axes.items() if values}
    if not axes and not words["equal_budget"]:
        raise HarnessError("no axis: name --steps, --eot, --restarts, --epsilons or --equal-budget")
    spec = engine.attack_of(
        words["attack"],
        {},
        dict(words["attack_options"]),
        step=defaults.step_size(words["dataset"]),
        epsilon=threat.epsilon,
    )
    registry.attacks.get(spec.name)
    if own_models.is_given(target.model):
        objects.refuse_copies([spec])
    base = Cell(
        target=target, attack=spec, threat=threat, draws=words["draws"], limit=words["limit"]
    )
    wanted = convergence.points(base, axes, equal_budget=words["equal_budget"])

    def work(runner: Runner) -> int:
        results = summaries.flagged(runner.run([point.cell for point in wanted]))
        found = list(zip(wanted, results, strict=True))
        folder: Path = words["output"]
        store.make_folder(folder)
        text = convergence.csv(found)
        store.write_atomic(folder / "convergence.csv", text.encode())
        title = f"{base.attack} on {target.label}, {target.dataset}"
        store.write_atomic(folder / "convergence.svg", convergence.svg(found, title))
        click.echo(text, nl=False)
        click.echo(f"{folder / 'convergence.csv'} and {folder / 'convergence.svg'}")
        raised = summaries.all_flags(results)
        return flags.strict_status(raised) if words["strict"] else 0

    return engine.session(_store(words), {"batch_size": 128, **words}, work)


def list_plugins(kind: str | None, *, everything: bool) -> None:
    """`harness list`."""
    kinds = {
        each.kind + "s": each
        for each in (
            registry.attacks,
            registry.defenses,
            registry.models,
            registry.datasets,
            registry.estimators,
        )
    }
    if kind is not None and kind not in kinds:
        raise HarnessError(f"no kind of plugin is called {kind!r}: there are {', '.join(kinds)}")
    registry.defenses.names()  # the estimators stand beside the defense that uses them
    for name, each in kinds.items():
        if kind not in (None, name):
            continue
        click.echo(f"{name}:")
        width = max((len(entry.name) for entry in each), default=0)
        for entry in each:
            click.echo(f"  {entry.name:<{width}}  {entry.summary}  [{entry.origin}]")
        for prefix, make in each.bridges().items():
            summary = (make.__doc__ or "").strip().split("\n")[0]
            click.echo(f"  {prefix}:...  {summary}")
            listing = getattr(make, "listing", None)
            for label, line, refusal in listing() if everything and listing else ():
                click.echo(f"    {label}  {f'refused: {refusal}' if refusal else line}")


def _numbers(text: str | None) -> list[float]:
    """`10,20,40` or `2/255,8/255`."""
    from harness.types import number

    return [number(part) for part in (text or "").split(",") if part.strip()]
