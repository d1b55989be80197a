"""Evidence flags: reasons to doubt a number, found in the records. Needs no torch.

`flags` looks at one record, `across` at all records of one target. Every rule that compares two
accuracies asks for a paired test on the same images and for a difference that matters, so that noise
raises no flag. `docs/flags.md` states each rule with its source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from harness.cells import defaults
from harness.results.consistency import inconsistent
from harness.results.paired import Comparison, comparable, compare, right_counts
from harness.results.records import Record
from harness.results.statistics import in_percent, mcnemar
from harness.storage import keys

OUTSIDE = "mostly-outside"
"""The flag of an attack whose images left the ball: its result is the accuracy as returned."""

EXPLANATIONS: Mapping[str, str] = {
    "not-converged": "more steps, draws or restarts still lower robust accuracy beyond its interval",
    "masked-gradients": "the gradients vanish or mislead: an attack that needs none does better",
    "silent-success": "images were fooled on the way but not by what the attack returned",
    "noise-success": "the defense's own noise at epsilon = 0 explains the drop",
    "weak-adaptive": "an adaptive attack is weaker than the plain one on the same model",
    "inconsistent-defense": "the defense answers one question in two ways: it may know who asks",
    "access-exceeded": "the attack took gradients that its declared access does not grant",
    "invalid-examples": "images outside box or ball, or not finite: they count as not attacked",
    OUTSIDE: "most images left the ball, where they count as not attacked: what is shown is as returned",
    "model-changed": "weights, hooks or mode of the model were changed; they were put back",
    "process-changed": "attack, defense or model left the process changed; it was put back",
    "at-chance": "the model knows no more than chance without any attack: there is nothing to defend",
    "unsound-readout": "the attack misses an adversarial example that is known to exist",
    "scaled-down": "fewer images, steps, draws or updates than the published protocol",
}
"""The meaning of every flag, in one line."""

SIGNIFICANCE = 0.01
"""The two-sided level of a test, divided by the number of comparisons that one flag makes for one target
(Bonferroni)."""
SMALLEST = 0.01
"""A difference of accuracy below this, or a share of images, is never worth a flag."""
DEAD_GRADIENTS = 0.05
"""The share of an attack's gradients that may be dead: a few images saturate on any model."""
DEAD_PIXELS = 0.2
"""The share of the probed pixels that may have no gradient: a clip that cuts a few values masks nothing."""
MANY_STEPS = 10
"""The least number of gradient steps with which an attack is expected to beat one without gradients."""
TOLERANCE = 2.0**-20
"""The excess over the radius that rounding explains, the same as where images are judged."""
EVERYTHING = 0.5
"""The L-infinity radius from which every image can be turned into the same grey image."""


def doubts(found: Iterable[str]) -> set[str]:
    """Return the flags that cast doubt on a number: all but `scaled-down`, which describes the question."""
    return set(found) - {"scaled-down"}


def strict_status(found: Iterable[str]) -> int:
    """Return the exit status of `--strict`: 3 where a number is in doubt, else 0."""
    return 3 if doubts(found) else 0


# --- one record -----------------------------------------------------------------------------------


def flags(record: Record, *, model_changed: str = "", process_changed: str = "") -> dict[str, str]:
    """Return the flags that one record shows by itself, each with its reason.

    Args:
        model_changed, process_changed: the changes that a guest made to the model and to the process.
    """
    rules: Mapping[str, Callable[[Record], str]] = {
        "inconsistent-defense": partial(inconsistent, smallest=SMALLEST),
        "access-exceeded": _access,
        "invalid-examples": _invalid,
        OUTSIDE: _outside,
        "masked-gradients": _gradients,
        "silent-success": _silent,
        "noise-success": _noise,
        "not-converged": _trace,
        "at-chance": _chance,
        "scaled-down": _scaled,
    }
    found = {name: reason for name, rule in rules.items() if (reason := rule(record))}
    if model_changed:
        found["model-changed"] = f"changed and put back: {model_changed}"
    if process_changed:
        found["process-changed"] = f"changed and put back: {process_changed}"
    return dict(sorted(found.items()))


def _half_width(record: Record) -> float:
    low, high = record.robust.interval
    return (high - low) / 2


def _invalid(record: Record) -> str:
    if not record.invalid:
        return ""
    named = ", ".join(map(str, record.invalid[:5]))
    more = ", ..." if len(record.invalid) > 5 else ""
    return f"{len(record.invalid)} images: ids {named}{more}"


def _outside(record: Record) -> str:
    """Return the reason why the accuracy in the ball is not the attack's result; empty where it is.

    A minimum-norm attack searches for the smallest ball, so its accuracy at epsilon is meaningful. That of an
    attack on the defense whose ball is elsewhere (`adaptive`, not `bounded`) is not.
    """
    threat = record.cell.threat
    distance = record.distances.get(f"median_{threat.norm}", 0.0)
    if record.bounded or not record.adaptive or distance <= threat.epsilon + TOLERANCE:
        return ""
    return (
        f"median {threat.norm} distance {distance:.3g}, the ball's radius is {threat.epsilon:.3g}: "
        f"{record.returned.mean:.1%} of the images as returned are classified rightly"
    )


def at_chance(record: Record) -> bool:
    """Return whether the model may be guessing on the unattacked images."""
    return record.count > 0 and record.clean.interval[0] <= 1 / record.classes


def _chance(record: Record) -> str:
    if not at_chance(record):
        return ""
    clean = in_percent(record.clean.mean, record.clean.interval)
    return f"{clean} % without an attack: chance is {1 / record.classes:.1%}"


def _gradients(record: Record) -> str:
    where = "on the source, " if record.transferred else ""
    dead = record.passes.get("dead_gradients", 0.0)
    if record.passes.get("backwards", 0) > 0 and dead > DEAD_GRADIENTS:
        return f"{where}{dead:.0%} of the gradients are zero, constant or not finite"
    blind = record.passes.get("dead_pixels", 0.0)
    if blind > DEAD_PIXELS:
        return (
            f"{where}{blind:.0%} of the pixels change what the classifier sees without a gradient"
        )
    if _unlimited(record) and record.robust.interval[0] > 1 / record.classes:
        return (
            f"at epsilon {record.cell.threat.epsilon:.4g}, where any image is in reach, "
            f"{record.robust.mean:.1%} stand: chance is {1 / record.classes:.1%}"
        )
    return ""


def _unlimited(record: Record) -> bool:
    """Return whether a sound attack must bring accuracy down to chance (Carlini et al. 2019)."""
    threat = record.cell.threat
    return (
        threat.norm == "linf"
        and threat.epsilon >= EVERYTHING
        and _white_box(record)
        and iterations(record) >= MANY_STEPS
        and iterations(record) * _step_size(record) >= EVERYTHING
    )


def _silent(record: Record) -> str:
    """Return the reason where the attack fooled more images on the way than it returned; empty otherwise.

    On a deterministic victim, an image that was fooled once is fooled, so images are counted. On a
    randomised one, a wrong answer on the way may be luck, so iterates are scored on fresh draws.
    """
    if record.transferred or not record.count:
        return ""  # the attack queried another model on the way
    if not record.randomised:
        once = right_counts((record.fooled_outcomes,), record.count)
        left = right_counts(record.robust_outcomes[:1], record.count)
        lost = sum(seen and stands for seen, stands in zip(once, left, strict=True))
        if lost > 1 and lost > SMALLEST * record.count:
            return f"{lost} of {record.count} images were fooled at some query but not at the end"
        return ""
    if not record.trace:
        return ""
    end, earlier = record.trace[-1], record.trace[:-1]
    for point in earlier:
        worse = end.accuracy - point.accuracy
        sure = mcnemar(point.rose, point.fell) < SIGNIFICANCE / len(earlier)
        if worse > SMALLEST and sure and point.rose > point.fell:
            return f"{point.accuracy:.1%} after {point.step} steps, {end.accuracy:.1%} at the end"
    return ""


def _noise(record: Record) -> str:
    """Return the reason where the defense's own noise explains the drop of accuracy; empty otherwise.

    A vote over draws removes the noise. Noise explains the drop where it makes up at least half of the way
    from the clean vote down to the robust mean.
    """
    if not record.randomised or record.resolved.draws < 2:
        return ""
    if record.cell.threat.epsilon == 0 or record.distances.get("largest_linf") == 0:
        return ""  # the control itself
    noise = record.clean.vote - record.clean.mean
    drop = record.clean.vote - record.robust.mean
    if noise <= max(_half_width(record), SMALLEST) or noise < drop / 2:
        return ""
    return (
        f"a draw is right on {record.robust.mean:.1%}, and on {record.clean.mean:.1%} of the unattacked "
        f"images; by vote {record.robust.vote:.1%} stand, of {record.clean.vote:.1%}"
    )


def _access(record: Record) -> str:
    taken = record.passes.get("backwards", 0.0)
    if record.access == "gradients" or not taken > 0:
        return ""
    return f"{taken:.3g} backward passes an image with access to {record.access}"


def _trace(record: Record) -> str:
    if not record.trace or record.transferred:
        return ""
    last = record.trace[-1]
    # Half of an attack that only just crosses the ball ends inside it, which says nothing about the whole.
    across = 2 * record.cell.threat.epsilon
    halves = [
        point
        for point in record.trace
        if point.step <= last.step / 2 and point.step * _step_size(record) >= across
    ]
    if not halves or last.accuracy <= _half_width(record):
        return ""  # the accuracy left to lose is within the interval
    half = halves[-1]
    sure = half.fell > half.rose and mcnemar(half.fell, half.rose) < SIGNIFICANCE
    if half.accuracy - last.accuracy > SMALLEST and sure:
        return f"{half.accuracy:.1%} after {half.step} steps, {last.accuracy:.1%} after {last.step}"
    return ""


def _step_size(record: Record) -> float:
    """Return the attack's step size, in pixel values; infinite where the attack has no such parameter.

    Where it is left to the attack, all steps together are two and a half radii long.
    """
    parameters = _parameters(record)
    size = parameters.get("step_size", float("inf"))
    if isinstance(size, int | float):
        return float(size)
    return 2.5 * record.cell.threat.epsilon / max(1, iterations(record))


def _scaled(record: Record) -> str:
    plan, cell = record.cell.target.training, record.cell
    fewer = []
    done = defaults.updates(cell.target.dataset, plan)
    published = defaults.published_updates(cell.target.dataset, plan, _versions(record))
    if done is not None and published is not None and done < published:
        fewer.append(f"{done:,} of {published:,} updates")
    if plan.limit is not None:
        fewer.append(f"trained on {plan.limit} images")
    if cell.limit is not None and cell.limit == record.count:
        fewer.append(f"the first {record.count} test images")
    if record.randomised and record.resolved.draws == 1:
        fewer.append("one scoring draw: noise cannot be told from success")
    return ", ".join(fewer)


def _versions(record: Record) -> int:
    """Return the number of fixed training versions of each image; 1 where the defense keeps none."""
    if record.cell.target.training.kind != "pure":
        return 1
    kept = record.resolved.target.defense.parameters.get("estimates")
    return kept if isinstance(kept, int) and kept > 0 else 1


# --- records of one target ------------------------------------------------------------------------


def across(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Return each record's flags by its key: its own and those that other records of its target raise."""
    found = {record.key: dict(record.flags) for record in records}
    for record in records:  # records made before this flag was known lack it
        if reason := _outside(record):
            found[record.key].setdefault(OUTSIDE, reason)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(target_key(record), []).append(record)
    for group in groups.values():
        for doubt in [
            *_judge("weak-adaptive", _adaptive_pairs(group)),
            *_judge("masked-gradients", [*_masked_pairs(group), *_smaller_ball_pairs(group)]),
            *_judge("not-converged", _doubled_pairs(group)),
            *_inherited(group),
        ]:
            found[doubt.key].setdefault(doubt.flag, doubt.reason)
    return {key: dict(sorted(flagged.items())) for key, flagged in found.items()}


def target_key(record: Record) -> str:
    """Return a key that records share if they are of one trained model, one randomness, and one image set."""
    facts = record.resolved
    return keys.key([facts.target, facts.target_randomness, record.ids])


@dataclasses.dataclass(frozen=True)
class _Doubt:
    key: str
    flag: str
    reason: str


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two records of which `weaker` is flagged if `stronger` leaves significantly fewer images standing."""

    weaker: Record
    stronger: Record
    says: str


def _judge(flag: str, pairs: Iterable[_Pair]) -> list[_Doubt]:
    usable = [pair for pair in pairs if comparable(pair.weaker, pair.stronger)]
    doubts = []
    for pair in usable:
        compared = compare(pair.weaker, pair.stronger)
        if beaten(compared, comparisons=len(usable)):
            numbers = f"{pair.weaker.robust.mean:.1%} against {pair.stronger.robust.mean:.1%}"
            doubts.append(_Doubt(pair.weaker.key, flag, f"{pair.says}: {numbers}"))
    return doubts


def beaten(compared: Comparison, *, comparisons: int = 1) -> bool:
    """Return whether the first record leaves significantly more images standing, by more than `SMALLEST`.

    Args:
        comparisons: the number of comparisons among which this one is made (Bonferroni).
    """
    certain = compared.more > compared.fewer and compared.p_value < SIGNIFICANCE / comparisons
    return compared.difference > SMALLEST and certain


def _adaptive_pairs(group: Sequence[Record]) -> Iterable[_Pair]:
    """Yield pairs of an adaptive attack and a plain one that spends no more passes."""
    for adaptive in group:
        for plain in group:
            if (
                adaptive.adaptive
                and _white_box(adaptive)
                and not plain.adaptive
                and _white_box(plain)
                and adaptive.cell.threat == plain.cell.threat
                and _passes(plain) <= _passes(adaptive)
            ):
                yield _Pair(adaptive, plain, f"{plain.cell.attack} does better for no more")


def _masked_pairs(group: Sequence[Record]) -> Iterable[_Pair]:
    """Yield pairs that reveal obfuscated gradients (Athalye et al. 2018, section 3.1)."""
    for white in group:
        if not _white_box(white) or white.cell.max_queries is not None:
            continue
        iterative = iterations(white) >= MANY_STEPS
        for other in group:
            if other.cell.threat != white.cell.threat or other is white:
                continue
            name = other.cell.attack
            if other.access == "none":
                yield _Pair(white, other, f"{name}, which sees nothing, does better")
            elif iterative and other.transferred:
                yield _Pair(white, other, f"{name}, made on another model, does better")
            elif iterative and other.access in ("scores", "labels"):
                yield _Pair(white, other, f"{name}, which sees {other.access} alone, does better")
            elif iterative and _white_box(other) and iterations(other) <= 1:
                yield _Pair(white, other, f"one step, {name}, does better than many")


def _smaller_ball_pairs(group: Sequence[Record]) -> Iterable[_Pair]:
    """Yield pairs of one iterative attack, in a larger ball and in a smaller one.

    Attacks of a single step are left out, since they may overshoot on a sound model.
    """
    for large in group:
        if not _white_box(large) or iterations(large) < MANY_STEPS:
            continue
        for small in group:
            a, b = large.cell.threat, small.cell.threat
            if _white_box(small) and a.norm == b.norm and 0 < b.epsilon < a.epsilon:
                if _family(large) != _family(small) or _passes(small) > _passes(large):
                    continue
                yield _Pair(large, small, f"the smaller ball of {b.epsilon:.4g} does better")


def _doubled_pairs(group: Sequence[Record]) -> Iterable[_Pair]:
    """Yield pairs of one attack, of which the second spends at least twice the passes."""
    for less in group:
        if not less.bounded or less.transferred or "steps" not in _parameters(less):
            continue
        for more in group:
            if (
                more.bounded
                and not more.transferred
                and more.cell.threat == less.cell.threat
                and more.cell.max_queries == less.cell.max_queries
                and _family(more) == _family(less)
                and _passes(more) >= 2 * _passes(less)
            ):
                yield _Pair(less, more, f"{_budget(more)} does better than {_budget(less)}")


def _inherited(group: Sequence[Record]) -> Iterable[_Doubt]:
    """Yield doubts about an attack at every epsilon, where it stays above chance in an unlimited ball."""
    for wide in group:
        if not (_unlimited(wide) and wide.robust.interval[0] > 1 / wide.classes):
            continue
        for record in group:
            if _white_box(record) and _family(record) == _family(wide):
                reason = wide.flags.get("masked-gradients", _gradients(wide))
                yield _Doubt(record.key, "masked-gradients", reason)


# --- what an attack is, read from its record ------------------------------------------------------


def _parameters(record: Record) -> Mapping[str, object]:
    return record.resolved.attack.parameters


def _white_box(record: Record) -> bool:
    return record.access == "gradients" and not record.transferred and record.bounded


def iterations(record: Record) -> int:
    """Return the number of gradient steps: the parameter `steps`, else the passes counted for each draw."""
    steps = _parameters(record).get("steps")
    if isinstance(steps, int):
        return steps
    return round(record.passes.get("backwards", 0.0) / max(1, _number(record, "eot")))


def _number(record: Record, name: str) -> int:
    value = _parameters(record).get(name, 1)
    return value if isinstance(value, int) else 1


def _passes(record: Record) -> int:
    """Return the forward-backward passes that the attack may spend on an image."""
    return iterations(record) * _number(record, "eot") * _number(record, "restarts")


def _budget(record: Record) -> str:
    names = [name for name in ("steps", "eot", "restarts") if name in _parameters(record)]
    return ", ".join(f"{name}={_number(record, name)}" for name in names)


_BUDGETS = {"steps", "eot", "restarts", "step_size", "keep", "snapshot_steps", "random_start"}


def _family(record: Record) -> str:
    """Return a key that attacks share if they differ only in their budgets."""
    own = {name: value for name, value in _parameters(record).items() if name not in _BUDGETS}
    return keys.key([record.resolved.attack.name, own])
