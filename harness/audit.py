"""Evidence flags: reasons to doubt a number, found in the records. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from harness.records import Record

EXPLANATIONS: Mapping[str, str] = {
    "not-converged": "more steps still lower robust accuracy beyond its interval",
    "masked-gradients": "the gradients vanish, are not finite, or point nowhere",
    "silent-success": "images were fooled on the way but not by what the attack returned",
    "noise-success": "the defense's own noise at epsilon = 0 explains the drop",
    "weak-adaptive": "an adaptive attack is weaker than the plain one on the same model",
    "invalid-examples": "images outside box or ball, or not finite: they count as not attacked",
    "model-changed": "the attack changed weights, buffers or mode; they were put back",
    "unsound-readout": "the attack misses an adversarial example that is known to exist",
    "scaled-down": "fewer images, steps or epochs than the published protocol",
}
"""Every flag, and what it means in one line."""


def flags(record: Record, *, model_changed: bool = False) -> dict[str, str]:
    """The flags that one record shows by itself, each with its reason."""
    found: dict[str, str] = {}
    low, high = record.robust.interval
    if record.invalid:
        named = ", ".join(map(str, record.invalid[:5]))
        more = ", ..." if len(record.invalid) > 5 else ""
        found["invalid-examples"] = f"{len(record.invalid)} images: ids {named}{more}"
    if model_changed:
        found["model-changed"] = "the victim's state differed after the attack"
    if record.passes.get("backwards", 0) > 0 and record.passes["dead_gradients"] > 0.05:
        share = record.passes["dead_gradients"]
        found["masked-gradients"] = f"{share:.0%} of the gradients are zero or not finite"
    survived = 1 - record.fooled_on_the_way
    if record.resolved["draws"] == 1 and low > survived:
        found["silent-success"] = (
            f"{record.fooled_on_the_way:.1%} were fooled at some query, "
            f"{1 - record.robust.mean:.1%} by the images returned"
        )
    noise = record.clean.mean - record.clean.all_draws
    drop = record.clean.mean - record.robust.mean
    if noise > 0.01 and 0 < drop <= noise and record.robust.vote > high - 1e-9:
        found["noise-success"] = (
            f"accuracy falls by {drop:.1%}; the defense's own noise flips {noise:.1%}"
        )
    halves = [point for point in record.trace if point.step <= record.trace[-1].step / 2]
    if halves:
        half, last = halves[-1], record.trace[-1]
        margin = (high - low) / 2
        if last.accuracy > margin and half.accuracy - last.accuracy > margin:
            found["not-converged"] = (
                f"{half.accuracy:.1%} after {half.step} steps, {last.accuracy:.1%} after {last.step}"
            )
    plan = record.cell.target.training
    if plan.paper_epochs is not None and plan.epochs < plan.paper_epochs:
        found["scaled-down"] = f"{plan.epochs} of {plan.paper_epochs} epochs"
    return dict(sorted(found.items()))
