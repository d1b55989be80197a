"""What the command line does that needs torch: words to cells, cells to a printed table."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from harness import registry
from harness.cells import defaults
from harness.cells.cells import Cell, Precision, Target
from harness.evaluation import suites
from harness.evaluation.runner import Runner
from harness.executors import local, ray
from harness.results import flags, summaries, tables
from harness.results.records import Failure, Record, Timing
from harness.spec import accepts_any, build, convert, fields, parse
from harness.storage import log, remote
from harness.storage.progress import reporter
from harness.storage.store import Store
from harness.targets import memory, objects, own_models
from harness.targets.model_store import Workshop
from harness.targets.training import Interrupted, Stop
from harness.types import HarnessError, Spec, ThreatModel

INTERRUPTED = 130


def choose_device(name: str | None) -> torch.device:
    """The device asked for, else the GPU where there is one.

    Raises:
        HarnessError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).split("\n")[0]
        raise HarnessError(f"device {name!r} cannot be used here: {first}") from error
    return device


def target_of(
    text: str,
    *,
    dataset: str,
    model: Spec,
    training: str,
    seed: int,
    plan_overrides: Mapping[str, Any],
    defense_options: Mapping[str, Any],
    precision: Precision = "auto",
) -> Target:
    """The defended model that a defense's name means; `madry` is vanilla, trained adversarially."""
    spec = parse(text)
    if spec.name == "madry":
        spec, training = dataclasses.replace(spec, name="vanilla"), "adversarial"
    spec = _with_options(spec, defense_options, registry.defenses)
    plan = own_models.plan(model, defaults.plan(dataset, training, plan_overrides))
    return Target(
        dataset=dataset,
        model=model,
        defense=spec,
        training=plan,
        seed=seed,
        precision=precision,
    )


def _with_options(
    spec: Spec, options: Mapping[str, Any], kind: registry.Registry, *, always: bool = True
) -> Spec:
    """A spec with options added: `key=value` for all, `name.key=value` for one plugin. Options that a
    plugin does not have are left out unless `always`."""
    make = kind.get(spec.name)
    known = fields(make)
    chosen = dict(spec.parameters)
    for key, value in options.items():
        owner, dot, rest = key.rpartition(".")
        if dot and owner.replace("_", "-") != spec.name:
            continue
        name = rest if dot else key
        if dot or always or name in known or accepts_any(make):
            chosen.setdefault(name, value)
    return dataclasses.replace(spec, parameters=chosen)


def attack_of(
    text: str,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    step: float,
    epsilon: float,
) -> Spec:
    """The attack that a name means, with the command line's settings where it has such fields.

    The dataset's step size stands where so many steps of it can cross the ball; else the attack
    chooses its own.
    """
    spec = _with_options(parse(text), options, registry.attacks)
    innermost = spec
    while innermost.inner is not None:
        innermost = innermost.inner
    own = fields(registry.attacks.get(innermost.name))
    chosen = {
        **{name: value for name, value in settings.items() if value is not None and name in own},
        **innermost.parameters,
    }
    default = getattr(registry.attacks.get(innermost.name), "steps", 0)
    steps = convert("steps", chosen.get("steps", default), int, f"attack {innermost.name}")
    if "step_size" in own and steps * step >= epsilon:
        chosen.setdefault("step_size", step)
    return _replace_innermost(spec, dataclasses.replace(innermost, parameters=chosen))


def _replace_innermost(spec: Spec, changed: Spec) -> Spec:
    if spec.inner is None:
        return changed
    return dataclasses.replace(spec, inner=_replace_innermost(spec.inner, changed))


def _check_options(
    flag: str, options: Mapping[str, Any], names: Sequence[str], kind: registry.Registry
) -> None:
    """An option that none of the named plugins has is a mistake.

    Raises:
        HarnessError: with what they have.
    """
    if len(names) < 2:
        return
    makes = [kind.get(parse(name).name) for name in names]
    known = set().union(*(fields(make) for make in makes))
    for key in options:
        if "." not in key and key not in known and not any(map(accepts_any, makes)):
            raise HarnessError(
                f"{flag} {key}: none of {', '.join(names)} has it. They have {', '.join(sorted(known))}"
            )


def run(**words: Any) -> int:
    """`harness run`. Returns the exit status."""
    dataset = words["dataset"]
    entry = defaults.of(dataset)
    epsilon = words["epsilon"] if words["epsilon"] is not None else defaults.epsilon(dataset)
    step = words["step_size"] if words["step_size"] is not None else defaults.step_size(dataset)
    threat = ThreatModel(epsilon=epsilon, norm=words["norm"])
    model = parse(words["model"] or entry["model"])
    model = own_models.specification(
        model, weights=words.get("weights"), normalisation=words.get("normalisation")
    )
    model = _with_options(model, dict(words["model_options"]), registry.models)
    defense_options, attack_options = dict(words["defense_options"]), dict(words["attack_options"])
    defenses = ["vanilla" if parse(name).name == "madry" else name for name in words["defenses"]]
    _check_options("-D", defense_options, defenses, registry.defenses)
    single = [name for name in words["attacks"] if not suites.is_suite(name)]
    _check_options("-A", attack_options, single, registry.attacks)
    several_defenses, several_attacks = len(words["defenses"]) > 1, len(words["attacks"]) > 1
    overrides = {"epochs": words["epochs"], **dict(words["training_options"])}
    if words["epsilon"] is not None and "epsilon" not in overrides:
        overrides["epsilon"] = epsilon  # adversarial training meets the ball it is judged by
    cells = []
    notes: list[str] = []
    for seed in words["seeds"]:
        for name in words["defenses"]:
            target = target_of(
                name,
                dataset=dataset,
                model=model,
                training=words["training"],
                seed=seed,
                plan_overrides=overrides,
                defense_options=_owned(defense_options, name, registry.defenses, several_defenses),
                precision=words["precision"],
            )
            specs = [
                attack_of(
                    attack,
                    {name: words[name] for name in ("steps", "eot", "step_size")},
                    _owned(attack_options, attack, registry.attacks, several_attacks),
                    step=step,
                    epsilon=epsilon,
                )
                for attack in single
            ]
            for attack in words["attacks"]:
                if suites.is_suite(attack):
                    specs += _suite(attack, target, threat, words, notes)
            if own_models.is_given(model):
                objects.refuse_copies(specs)
            for spec in {str(each): each for each in specs}.values():
                cells.append(
                    Cell(
                        target=target,
                        attack=spec,
                        threat=threat,
                        draws=words["draws"],
                        limit=words["limit"],
                        max_queries=words["max_queries"],
                    )
                )
    return execute(cells, words, list(dict.fromkeys(notes)))


def _suite(
    name: str, target: Target, threat: ThreatModel, words: Mapping[str, Any], notes: list[str]
) -> list[Spec]:
    """The attacks of a suite for one target; `notes` gains what is less than the published recipes."""
    entries = suites.expand(
        name,
        build(target.defense, registry.defenses),
        threat,
        scale=words.get("budget_scale") or 1.0,
        overrides={key: words[key] for key in ("steps", "eot") if words[key] is not None},
    )
    if own_models.is_given(target.model):
        entries, left_out = objects.without_copies(entries)
        notes += [f"{name} suite, {line}" for line in left_out]
    notes += [
        f"scaled-down: {name} suite, {entry.name}: {entry.scaled}"
        for entry in entries
        if entry.scaled
    ]
    return [entry.attack for entry in entries]


def _owned(
    options: Mapping[str, Any], name: str, kind: registry.Registry, several: bool
) -> dict[str, Any]:
    """Of several plugins each takes the options that it has; a single one must have them all."""
    if not several:
        return dict(options)
    plain = "vanilla" if parse(name).name == "madry" else parse(name).name
    make = kind.get(plain)
    known = fields(make)
    return {
        key: value
        for key, value in options.items()
        if "." in key or key in known or accepts_any(make)
    }


def session(store: Store, words: Mapping[str, Any], work: Callable[[Runner], int]) -> int:
    """Do some work with a runner on `store`; interrupted, say so. Returns the exit status."""
    on_ray = ray.asked(words)
    # Ray's driver plans and draws alone: it may stand where there is no GPU.
    names: list[str | None] = [None]
    if not on_ray:
        names = [words["device"]] * (words.get("workers") or 1)
    if words.get("devices") is not None:
        names = [*local.devices(words["devices"])]
    with _signals() as stop, log.to(words.get("log")), store.publishing():
        workshop = Workshop(
            store=store,
            device=choose_device(names[0]),
            reporter=reporter(quiet=words["quiet"]),
            stop=stop,
            data_dir=words["data_dir"],
        )
        runner = Runner(workshop=workshop, batch_size=words["batch_size"])
        store.noticed = workshop.notice
        if on_ray:
            runner.executor = ray.cluster(runner, words)
        if len(names) > 1:
            torch.set_num_threads(local.threads(len(names)))
            runner.crew = local.Crew(
                devices=[str(choose_device(name)) for name in names],
                results=store.results,
                cache=store.cache,
                data_dir=words["data_dir"],
                batch_size=words["batch_size"],
                memory=words.get("memory"),
                store=words.get("store"),
                log=words.get("log"),
            )
        if words.get("memory") is not None:
            memory.limit(words["memory"], workshop.device)
        try:
            return work(runner)
        except (Interrupted, KeyboardInterrupt):
            click.echo("stopped: what is done is kept; the same command again goes on", err=True)
            return INTERRUPTED


def execute(cells: Sequence[Cell], words: Mapping[str, Any], notes: Sequence[str] = ()) -> int:
    """Run cells, print the table, say where the records lie."""
    store = remote.opened(words["results"], words["cache"], words.get("store"))
    store.prepare()
    strict = bool(words.get("strict"))
    return session(store, words, lambda runner: _run_and_show(cells, runner, notes, strict=strict))


def _run_and_show(
    cells: Sequence[Cell], runner: Runner, notes: Sequence[str], *, strict: bool
) -> int:
    store, workshop = runner.store, runner.workshop
    results = summaries.flagged(runner.run(cells))
    timings = {result.key: store.read_json("timings", result.key, Timing) for result in results}
    note = workshop.dataset(cells[0].target.dataset, "test").note
    show(results, timings, store.results, note)
    for line in [*summaries.worst_lines(results), *notes, *summaries.spread_lines(results)]:
        click.echo(line)
    failed = [result for result in results if isinstance(result, Failure)]
    for line in workshop.damage:
        if not any(line in failure.reason for failure in failed):
            click.echo(f"damaged: {line}, and made again", err=True)
    if workshop.damage or any(failure.kind == "damaged" for failure in failed):
        return 1
    if failed:
        return 2
    return flags.strict_status(summaries.all_flags(results)) if strict else 0


def show(
    results: Sequence[Record | Failure],
    timings: Mapping[str, Timing | None],
    folder: Path,
    note: str,
) -> None:
    """The table that a person reads, and the doubts under it."""
    cell = results[0].cell
    target = cell.target
    click.echo(
        f"\n{target.dataset}, {target.model}, {target.schooling}, "
        f"{cell.threat.norm} epsilon {cell.threat.epsilon:.4g}" + (f"; {note}" if note else "")
    )
    click.echo(tables.summary(results, timings))
    click.echo(
        "Accuracies in percent: mean over the scoring draws, beside the paper's one draw and the vote."
    )
    for line in _doubts(results):
        click.echo(line)
    for result in results:
        kind = "failures" if isinstance(result, Failure) else "records"
        click.echo(f"{kind[:-1]}: {folder / kind / result.key}.json")


def _doubts(results: Sequence[Record | Failure]) -> list[str]:
    """A line for each reason of a flag or a failure, with the cells that it concerns."""
    count = len({result.key for result in results})
    several = len({result.cell.target.seed for result in results}) > 1
    concerned: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        target = result.cell.target
        name = f"{result.cell.attack} on {target.label}"
        name += f" (seed {target.seed})" if several else ""
        found = {result.kind: result.reason} if isinstance(result, Failure) else result.flags
        for kind, reason in found.items():
            concerned.setdefault((kind, reason), {})[result.key] = name
    return [
        f"{kind}: "
        + (f"all {count} cells" if len(cells) == count > 1 else ", ".join(cells.values()))
        + f": {reason}"
        for (kind, reason), cells in concerned.items()
    ]


@contextlib.contextmanager
def _signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask the run to stop; a second one ends it at once."""
    stop = Stop()

    def ask(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        click.echo("stopping at the next safe point; once more stops at once", err=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
