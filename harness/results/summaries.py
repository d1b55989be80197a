"""Combine several records: their flags, worst cases, and spread over seeds. Needs no torch."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from harness.results import flags, worst_case
from harness.results.audits import Audit
from harness.results.records import Failure, Record, unpack
from harness.storage import keys


def flagged(
    results: Sequence[Record | Failure], audits: Iterable[Audit] = ()
) -> list[Record | Failure]:
    """Return the results with the flags that other records and audits raise added to each record's own."""
    found = flags.across([result for result in results if isinstance(result, Record)])
    for each in audits:
        for key, raised in each.flags.items():
            for flag, reason in raised.items():
                if key in found:
                    found[key].setdefault(flag, reason)
    return [
        dataclasses.replace(result, flags=dict(sorted(found[result.key].items())))
        if isinstance(result, Record)
        else result
        for result in results
    ]


def all_flags(results: Iterable[Record | Failure]) -> set[str]:
    """Return every flag that at least one record has."""
    return {flag for result in results if isinstance(result, Record) for flag in result.flags}


def worst_lines(results: Sequence[Record | Failure]) -> list[str]:
    """Return a line with the worst case of each target and ball that several attacks were run on."""
    records = [result for result in results if isinstance(result, Record)]
    lines = []
    for (_, threat), group in worst_case.groups(list({r.key: r for r in records}.values())).items():
        if len(group) < 2 or not group[0].count or len({len(r.robust_outcomes) for r in group}) > 1:
            continue
        worst = worst_case.worst_case(group)
        low, high = worst.interval
        alone = [f"{name} on {count}" for name, count in worst.alone.items() if count]
        lines.append(
            f"worst case on {group[0].cell.target.label} at {threat.norm} {threat.epsilon:.4g}: each image "
            f"under the worst of {len(group)} attacks: {worst.mean:.1%} [{low:.1%}, {high:.1%}] mean "
            f"over draws, {worst.vote:.1%} by vote"
            + (f"; alone to break an image's vote: {', '.join(alone)}" if alone else "")
        )
    return lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """The results of one cell under several seeds."""

    values: tuple[float, ...]
    """The mean robust accuracy of each trained model."""
    between_models: float
    """The standard deviation of `values`, with n - 1."""
    between_draws: float
    """The standard deviation of the accuracy over scoring draws, as root mean square over the models."""

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


def spread(records: Sequence[Record]) -> Spread:
    """Return the spread of records that differ in the seed alone.

    Raises:
        ValueError: fewer than two.
    """
    if len(records) < 2:
        raise ValueError("a spread needs two seeds or more")
    draws = []
    for record in records:
        accuracies = [
            sum(unpack(row, record.count)) / max(1, record.count) for row in record.robust_outcomes
        ]
        draws.append(_deviation(accuracies) ** 2)
    values = tuple(record.robust.mean for record in records)
    return Spread(
        values=values,
        between_models=_deviation(values),
        between_draws=math.sqrt(sum(draws) / len(draws)),
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def spread_lines(results: Sequence[Record | Failure]) -> list[str]:
    """Return a line with the spread of each cell that was run with several seeds."""
    groups: dict[str, dict[int, Record]] = {}
    for result in results:
        if isinstance(result, Record):
            target = dataclasses.replace(result.cell.target, seed=0)
            place = keys.key(dataclasses.replace(result.cell, target=target))
            groups.setdefault(place, {})[result.cell.target.seed] = result
    lines = []
    for group in groups.values():
        if len(group) < 2:
            continue
        found = spread(list(group.values()))
        first = next(iter(group.values()))
        each = ", ".join(f"{100 * value:.1f}" for value in found.values)
        lines.append(
            f"seeds {', '.join(map(str, group))}: {first.cell.attack} on {first.cell.target.label}: {each}: "
            f"mean {found.mean:.1%}, standard deviation between trained models "
            f"{100 * found.between_models:.1f} points, between scoring draws "
            f"{100 * found.between_draws:.1f}"
        )
    return lines


def worst_cases(records: Sequence[Record]) -> Mapping[str, worst_case.Worst]:
    """Return the worst case of each record's group, by key; records alone in their group are left out."""
    found = {}
    for group in worst_case.groups(records).values():
        if len(group) > 1 and group[0].count and len({len(r.robust_outcomes) for r in group}) == 1:
            worst = worst_case.worst_case(group)
            found.update({record.key: worst for record in group})
    return found
