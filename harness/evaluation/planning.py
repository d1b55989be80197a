"""Turn options into the cells that they mean, in one way for the command line and for Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from harness import registry
from harness.cells import defaults, plugins
from harness.cells.cells import Cell, Precision, Target
from harness.evaluation import suites
from harness.spec import accepts_any, convert, fields, parse
from harness.targets import objects, own_models
from harness.types import Attack, HarnessError, Norm, Spec, ThreatModel, Training

Options = Mapping[str, object]
"""Parameters of plugins: `key` for all plugins that are named, `name.key` for one of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The models to train and the ball to attack them in. None stands for the dataset's default."""

    dataset: str = "digits"
    model: str | None = None
    weights: str | None = None
    normalisation: str | None = None
    training: Training = "pure"
    epochs: int | None = None
    epsilon: float | None = None
    norm: Norm = "linf"
    precision: Precision = "auto"
    defense_options: Options = dataclasses.field(default_factory=dict)
    model_options: Options = dataclasses.field(default_factory=dict)
    training_options: Options = dataclasses.field(default_factory=dict)

    @property
    def threat(self) -> ThreatModel:
        """The ball that the options name."""
        epsilon = defaults.epsilon(self.dataset) if self.epsilon is None else self.epsilon
        return ThreatModel(epsilon=epsilon, norm=self.norm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """The attacks to run on each target, and their scoring."""

    attacks: Sequence[str | Attack]
    """The attacks and suites to run."""
    steps: int | None = None
    step_size: float | None = None
    eot: int | None = None
    draws: int = 10
    limit: int | None = None
    max_queries: int | None = None
    budget_scale: float | None = None
    """The share of a suite's published budget, in (0, 1]."""
    attack_options: Options = dataclasses.field(default_factory=dict)

    @property
    def single(self) -> list[str | Attack]:
        """The attacks that are no suite."""
        return [each for each in self.attacks if not _is_suite(each)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a matrix: every attack on every defense, for every seed."""

    target: TargetOptions
    attack: AttackOptions
    defenses: Sequence[str] = (registry.defenses.default,)
    seeds: Sequence[int] = (0,)


def cells(options: RunOptions) -> tuple[list[Cell], list[str]]:
    """Return (the cells of a matrix, a line for each way in which a suite is less than published).

    Raises:
        HarnessError: a plugin does not exist, or no named plugin has an option.
    """
    target, attack = options.target, options.attack
    defenses = [_preset(name, "pure")[0] for name in options.defenses]
    _check_options("-D", target.defense_options, defenses, registry.defenses)
    singles = [parse(each) for each in attack.single if isinstance(each, str)]
    _check_options("-A", attack.attack_options, singles, registry.attacks)
    several = len(options.defenses) > 1
    found: list[Cell] = []
    notes: list[str] = []
    for seed in options.seeds:
        for name in options.defenses:
            made = target_of(name, target, seed=seed, several=several)
            more, less = cells_on(made, target.threat, attack)
            found += more
            notes += less
    return found, list(dict.fromkeys(notes))


def target_of(
    defense: str, options: TargetOptions, *, seed: int = 0, several: bool = False
) -> Target:
    """Return the defended model that a defense's name means.

    Args:
        several: whether other defenses are named too; each then takes the options that it has.
    """
    dataset = options.dataset
    model = own_models.specification(
        parse(options.model or defaults.of(dataset)["model"]),
        weights=options.weights,
        normalisation=options.normalisation,
    )
    model = _with_options(model, options.model_options, registry.models)
    spec, training = _preset(defense, options.training)
    spec = _with_options(spec, options.defense_options, registry.defenses, several=several)
    overrides = {"epochs": options.epochs, **options.training_options}
    if options.epsilon is not None:  # adversarial training uses the ball of the evaluation
        overrides.setdefault("epsilon", options.epsilon)
    return Target(
        dataset=dataset,
        model=model,
        defense=spec,
        training=own_models.plan(model, defaults.plan(dataset, training, overrides)),
        seed=seed,
        precision=options.precision,
    )


def cells_on(
    target: Target, threat: ThreatModel, options: AttackOptions
) -> tuple[list[Cell], list[str]]:
    """Return (the cells of one target, a line for each way in which a suite is less than published)."""
    given = target.training.kind == "given"
    several = len(options.single) > 1
    asked: dict[str, tuple[Spec, ThreatModel]] = {}
    for each in options.single:
        if isinstance(each, Attack):
            spec = objects.specification(each)
        else:
            spec = attack_of(
                each, options, dataset=target.dataset, epsilon=threat.epsilon, several=several
            )
        asked.setdefault(str(spec), (spec, threat))
    if given:
        suites.refuse_copies([spec for spec, _ in asked.values()])
    notes: list[str] = []
    for name in filter(_is_suite, options.attacks):
        entries = suites.expand(
            str(name),
            plugins.defense(target.defense),
            threat,
            scale=1.0 if options.budget_scale is None else options.budget_scale,
            overrides={
                word: value
                for word, value in (("steps", options.steps), ("eot", options.eot))
                if value is not None
            },
        )
        unoffered = suites.left_out(str(name), plugins.defense(target.defense), threat)
        notes += [f"{name} suite, {line}" for line in unoffered]
        if given:
            entries, left_out = suites.without_copies(entries)
            notes += [f"{name} suite, {line}" for line in left_out]
        for entry in entries:
            asked.setdefault(str(entry.attack), (entry.attack, entry.threat))
            if entry.scaled:
                notes.append(f"scaled-down: {name} suite, {entry.name}: {entry.scaled}")
    if not asked:
        raise HarnessError("no attack is named: `adaptive`, or one of `harness list attacks`")
    found = [
        Cell(
            target=target,
            attack=spec,
            threat=ball,
            draws=options.draws,
            limit=options.limit,
            max_queries=options.max_queries,
        )
        for spec, ball in asked.values()
    ]
    return found, notes


def attack_of(
    text: str, options: AttackOptions, *, dataset: str, epsilon: float, several: bool = False
) -> Spec:
    """Return the attack that a text means, with the options that apply to it.

    The parameters in the text outrank the options, and these outrank the dataset's step size. Of nested
    attacks, the innermost one takes steps, draws and step size.
    """
    settings = {"steps": options.steps, "step_size": options.step_size, "eot": options.eot}

    def fitted(spec: Spec) -> Spec:
        if spec.inner is not None:
            return dataclasses.replace(spec, inner=fitted(spec.inner))
        make = registry.attacks.get(spec.name)
        known = fields(make)
        chosen = {name: settings[name] for name in settings.keys() & known.keys()}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        chosen |= spec.parameters
        if "step_size" in known and "step_size" not in chosen:
            steps = chosen.get("steps", getattr(make, "steps", 0))
            number = convert("steps", steps, int, f"attack {spec.name}")
            size = defaults.step_size(dataset, epsilon=epsilon, steps=number)
            chosen |= {} if size is None else {"step_size": size}
        return dataclasses.replace(spec, parameters=chosen)

    return fitted(
        _with_options(parse(text), options.attack_options, registry.attacks, several=several)
    )


def _is_suite(attack: str | Attack) -> bool:
    return isinstance(attack, str) and suites.is_suite(attack)


def _preset(text: str, training: Training) -> tuple[Spec, Training]:
    """Return (defense, training) for a name; an alias has its own training."""
    spec = parse(text)
    plugin, alias_training = registry.defenses.meant(spec.name)
    return dataclasses.replace(spec, name=plugin), alias_training or training


def _with_options(
    spec: Spec, options: Options, kind: registry.Registry, *, several: bool = False
) -> Spec:
    """Return a spec with the options added that it does not set itself."""
    make = kind.get(spec.name)
    known = fields(make)
    chosen = dict(spec.parameters)
    for key, value in options.items():
        owner, dot, name = key.rpartition(".")
        if dot and owner.replace("_", "-") != spec.name:
            continue
        if dot or not several or name in known or accepts_any(make):
            chosen.setdefault(name, value)
    return dataclasses.replace(spec, parameters=chosen)


def _check_options(
    flag: str, options: Options, specs: Iterable[Spec], kind: registry.Registry
) -> None:
    """Check that each option belongs to at least one of several plugins; a single plugin checks its own.

    Raises:
        HarnessError: none of them has the option.
    """
    named = list(specs)
    if len(named) < 2:
        return
    makes = [kind.get(spec.name) for spec in named]
    known = set().union(*(fields(make) for make in makes))
    for key in options:
        if "." not in key and key not in known and not any(map(accepts_any, makes)):
            raise HarnessError(
                f"{flag} {key}: none of {', '.join(map(str, named))} has it. "
                f"They have {', '.join(sorted(known))}"
            )
