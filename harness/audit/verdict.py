"""Reach the verdict of an audit, and write its page for a reviewer. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from harness.results import flags as audit
from harness.results.audits import Audit
from harness.results.paired import comparable
from harness.results.records import Record
from harness.results.statistics import in_percent
from harness.results.tables import markdown_table
from harness.results.worst_case import Worst, worst_case
from harness.storage.progress import duration
from harness.types import ThreatModel

BROKEN = 0.1
"""The robust accuracy below which a defense is broken; one below chance is broken too."""


def conclude(
    records: Sequence[Record], flags: Mapping[str, Mapping[str, str]], threat: ThreatModel
) -> tuple[Literal["broken", "weakened", "in doubt", "stands", "untested"], str]:
    """Return the verdict in a word and in a sentence, from the records of one target at its threat model."""
    inside = [r for r in records if r.cell.threat == threat and comparable(r, records[0])]
    seeing = [record for record in inside if record.access != "none"]
    if not seeing:
        return "untested", "No attack that looks at the model was finished."
    first = inside[0]
    if audit.at_chance(first):
        return "untested", (
            f"The model is right on {first.clean.mean:.1%} of the unattacked images, where chance is "
            f"{1 / first.classes:.1%}: there is nothing to attack."
        )
    worst = worst_case(inside)
    low, high = worst.interval
    numbers = (
        f"of {first.clean.mean:.1%} right without an attack, {worst.mean:.1%} "
        f"[{low:.1%}, {high:.1%}] stand when each image meets the worst of {len(inside)} attacks "
        f"({worst.vote:.1%} by vote)"
    )
    if high <= max(BROKEN, 1 / first.classes):
        return "broken", f"The defense is broken: {numbers}."
    strongest = min(seeing, key=lambda record: record.robust.mean)
    found = {record.key: audit.doubts(flags.get(record.key, {})) for record in inside}
    if own := found[strongest.key]:
        return "in doubt", (
            f"What stands is not to be trusted: {numbers}, and even the strongest attack, "
            f"{strongest.cell.attack}, is flagged {', '.join(sorted(own))}."
        )
    if doubts := set().union(*found.values()):
        flagged = sum(map(bool, found.values()))
        return "in doubt", (
            f"What stands is not to be trusted: {numbers}, and of the {len(inside)} attacks {flagged} are "
            f"flagged {', '.join(sorted(doubts))}."
        )
    if high < first.clean.mean / 2:
        return "weakened", f"The defense loses most of its accuracy: {numbers}."
    return "stands", f"Nothing that was tried breaks the defense: {numbers}."


def report(found: Audit, records: Mapping[str, Record]) -> str:
    """Return the page as Markdown."""
    target, threat = found.target, found.threat
    lines = [
        f"# Audit of {target.label}",
        "",
        f"{target.model} on {target.dataset}, {target.schooling}, seed {target.seed}; "
        f"{threat.norm} epsilon {threat.epsilon:.4g}; {found.count} of {found.available} test images, "
        f"{found.draws} scoring draws; {duration(found.spent)} of {duration(found.budget)} spent.",
        "",
        f"**Verdict: {found.verdict}.** {found.sentence}",
        "",
        "## What was tried",
        "",
        *_table(found, records),
        "",
        *[f"- {probe.name}: {probe.outcome}" for probe in found.probes if not probe.untested],
        "",
        "## What fell",
        "",
        *(_fallen(found, records) or ["Nothing."]),
        "",
        "## What remains untested",
        "",
        *_untested(found),
    ]
    return "\n".join(lines) + "\n"


def _table(found: Audit, records: Mapping[str, Record]) -> list[str]:
    rows = []
    for tried in found.tried:
        record = records.get(tried.key)
        if record is None:
            continue
        rows.append(
            [
                tried.name,
                str(record.cell.attack),
                f"{record.cell.threat.epsilon:.4g}",
                in_percent(record.robust.mean, record.robust.interval),
                f"{100 * record.robust.vote:.1f}",
                f"{100 * record.robust.one_draw:.1f}",
                " ".join(sorted(found.flags.get(tried.key, {}))) or "none",
            ]
        )
    if not rows:
        return ["Nothing was finished."]
    header = ["attack", "recipe", "epsilon", "robust [95 %]", "vote", "one draw", "flags"]
    text = markdown_table(header, rows)
    clean = next(iter(records[t.key] for t in found.tried if t.key in records)).clean
    control = (
        f"Control at epsilon 0: {100 * clean.mean:.1f} mean, {100 * clean.vote:.1f} vote, "
        f"{100 * clean.one_draw:.1f} one draw, {100 * clean.all_draws:.1f} right in every draw."
    )
    return [*text.split("\n"), "", control]


def _fallen(found: Audit, records: Mapping[str, Record]) -> list[str]:
    """Return the claims that do not hold: numbers with a flag, and the accuracy after the worst case."""
    lines: list[str] = []
    for tried in found.tried:
        for flag, reason in sorted(found.flags.get(tried.key, {}).items()):
            if tried.key and flag != "scaled-down":
                lines.append(f"- {tried.name}: {flag}: {reason}")
    worst = worst_of(found, records)
    plain = [records[t.key] for t in found.tried if t.name == "plain" and t.key in records]
    if worst is not None and plain and plain[0].robust.mean - worst.mean > audit.SMALLEST:
        lines.append(
            f"- the plain attack's {plain[0].robust.mean:.1%}: the worst case over "
            f"{len(worst.attacks)} attacks leaves {worst.mean:.1%}"
        )
    return list(dict.fromkeys(lines))


def worst_of(found: Audit, records: Mapping[str, Record]) -> Worst | None:
    """Return the worst case at the audited epsilon; None where there is no record."""
    inside = [
        records[tried.key]
        for tried in found.tried
        if tried.key in records
        and records[tried.key].cell.threat == found.threat
        and records[tried.key].cell.target == found.target
    ]
    inside = [record for record in inside if comparable(record, inside[0])]
    return worst_case(inside) if inside else None


def _untested(found: Audit) -> list[str]:
    other = "l2" if found.threat.norm == "linf" else "linf"
    lines = [
        f"- {tried.name} ({tried.why}): {tried.untested}" for tried in found.tried if not tried.key
    ]
    lines += [f"- {probe.name}: {probe.outcome}" for probe in found.probes if probe.untested]
    cut = [
        f"{tried.name} with {tried.scaled}" for tried in found.tried if tried.key and tried.scaled
    ]
    if cut:
        lines.append(f"- the published budget: {'; '.join(cut)}")
    if found.count < found.available:
        lines.append(f"- {found.available - found.count} of the {found.available} test images")
    reasons = " ".join(reason for flags in found.flags.values() for reason in flags.values())
    if " updates" in reasons or " epochs" in reasons:  # records of earlier versions count epochs
        lines.append("- the model of the published schedule: this one was trained for less")
    lines += [
        f"- {other} balls, and epsilons other than those in the table",
        "- other trainings of the same defense: this is one seed",
        "- an attack made by hand for this very defense",
    ]
    return lines
