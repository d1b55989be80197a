"""The only judge. It trusts no attack: it checks every image and scores it on draws of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from harness.geometry import TOLERANCE, norms
from harness.random import Draws, Role, content_ids
from harness.targets.defended import Defended
from harness.targets.views import Question
from harness.types import Batch, ThreatModel


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The judge's results for N images under K scoring draws."""

    ids: Tensor
    labels: Tensor
    clean: Tensor
    """(K, N) predictions on the original images: the epsilon = 0 control."""
    adversarial: Tensor
    """(K, N) predictions on the attacked images, on the same draws; outside the ball, the control's."""
    returned: Tensor
    """(K, N) predictions on the images as returned, however far away; where unusable, the control's."""
    linf: Tensor
    l2: Tensor
    invalid: Tensor
    """(N,) int8: 0 valid; otherwise a bit set of NOT_FINITE, OUTSIDE_BOX, OUTSIDE_BALL."""
    looks: Tensor
    """(N,) int8: the outcome of repeated queries, a bit set of the names in `LOOKS`; 0 where not repeated."""

    def __len__(self) -> int:
        return len(self.ids)


NOT_FINITE, OUTSIDE_BOX, OUTSIDE_BALL = 1, 2, 4

LOOKS = {
    "asked": 1,
    "alone": 2,
    "later": 4,
    "gradients": 8,
    "replayed": 16,
    "attack": 32,
}
"""Bits of `Judgement.looks`: the query was repeated; its logits differ alone, after other calls, and with
gradients; a query of the attack was repeated, and its answer differs."""
DIFFERENT = 0.1
"""The share of the range of an image's logits that rounding may change, even in half precision."""


def check_images(perturbed: Tensor, images: Tensor, threat: ThreatModel) -> Tensor:
    """Return (N,) int8 reasons why images break the threat model, 0 where they do not.

    A reason is a bit set of NOT_FINITE, OUTSIDE_BOX and OUTSIDE_BALL. No image is repaired.
    """
    finite = torch.isfinite(perturbed).flatten(1).all(dim=1)
    known = torch.where(finite.reshape(-1, 1, 1, 1), perturbed, images)
    box = ((known < 0) | (known > 1)).flatten(1).any(dim=1)
    ball = norms(known.double() - images.double(), threat.norm) > threat.epsilon + TOLERANCE
    codes = ~finite * NOT_FINITE + box * OUTSIDE_BOX + ball * OUTSIDE_BALL
    return codes.to(torch.int8)


def predictions(
    defended: Defended,
    images: Tensor,
    ids: Tensor,
    *,
    seed: int,
    draws: int,
    role: Role = Role.SCORE,
    on_pass: Callable[[int], None] | None = None,
) -> Tensor:
    """Return (K, N) int64 predicted classes under `draws` fresh draws of the defense's randomness."""
    place = Draws(seed, ids, role)
    asked = [(images, place.at(draw=draw)) for draw in range(draws)]
    return _predicted(answers(defended, asked, on_pass), ids)


def answers(
    defended: Defended,
    asked: Iterable[tuple[Tensor, Draws]],
    on_pass: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Return the (n, classes) logits for each query; all queries are made in the same way."""
    found = []
    for images, draws in asked:
        with torch.no_grad():
            found.append(defended.logits(images, draws))
        if on_pass is not None:
            on_pass(len(images))
    return found


def _predicted(logits: list[Tensor], ids: Tensor) -> Tensor:
    rows = [each.argmax(dim=1) for each in logits]
    return torch.stack(rows) if rows else ids.new_zeros(0, len(ids))


def judge(
    defended: Defended,
    batch: Batch,
    perturbed: Tensor,
    threat: ThreatModel,
    *,
    seed: int,
    draws: int,
    bounded: bool = True,
    clean: Tensor | None = None,
    again: int = 0,
    replayed: Sequence[Question] = (),
) -> Judgement:
    """Check and score attacked images, and return the judgement.

    Control and attack are scored on the same draws, so that an image's two outcomes differ by the
    perturbation alone. An image that is not finite, leaves the box, or leaves the ball counts as not
    attacked. For an unbounded attack, leaving the ball is no violation, but still counts as not attacked:
    accuracy is always accuracy at epsilon.

    Args:
        perturbed: (N, C, H, W) float32, as stored.
        clean: (K, N) predictions on the original images, where they are known already.
        again: the number of images whose queries are repeated: alone, after other calls, with gradients. A
            defense is a function of images and draws, so that the answers must be alike.
        replayed: queries of an attack to this same model, which are repeated among the judge's own queries.
    """
    invalid = check_images(perturbed, batch.images, threat)
    usable = (invalid & (NOT_FINITE | OUTSIDE_BOX)) == 0
    scored = torch.where(usable.reshape(-1, 1, 1, 1), perturbed, batch.images)
    score = Draws(seed, batch.ids, Role.SCORE)
    places = [score.at(draw=draw) for draw in range(draws)]
    # The attacked images come first: no answer to the control is known by then, to whoever keeps notes.
    asked = [(scored, place) for place in places]
    if clean is None:
        asked += [(batch.images, place) for place in places]
    own = len(asked)
    place = places[_middle(scored, draws)] if again else score
    second = _second_looks(scored, batch, place, again)
    asked += [*second, *((each.images, each.draws) for each in replayed)]
    logits = answers(defended, asked)
    returned = _predicted(logits[:draws], batch.ids)
    if clean is None:
        clean = _predicted(logits[draws:own], batch.ids)
    looks = torch.zeros_like(invalid)
    if second:
        few = slice(0, len(second[0][0]))
        found = [*logits[own : own + len(second)], _with_gradients(defended, *second[2])]
        looks[few] = _compared(logits[0][few], logits[place.draw][few], found)
    for question, answer in zip(replayed, logits[own + len(second) :], strict=True):
        _mark(looks, batch.ids, question, answer)
    adversarial = torch.where(invalid == 0, returned, clean)
    if not bounded:
        invalid = torch.where(invalid == OUTSIDE_BALL, torch.zeros_like(invalid), invalid)
    difference = torch.nan_to_num(perturbed - batch.images, nan=float("inf"))
    return Judgement(
        ids=batch.ids,
        labels=batch.labels,
        clean=clean,
        adversarial=adversarial,
        returned=returned,
        linf=norms(difference, "linf"),
        l2=norms(difference, "l2"),
        invalid=invalid,
        looks=looks,
    )


def _second_looks(
    scored: Tensor, batch: Batch, place: Draws, count: int
) -> list[tuple[Tensor, Draws]]:
    """Return repeated queries of the first images.

    They are alone in the batch, under the first of the judge's draws and at `place`; then under draws that
    were never used, before and after a query of the original images under the same draws.
    """
    few = slice(0, count)
    images, originals = scored[few], batch.images[few]
    if not len(images):
        return []
    new = Draws(place.seed, content_ids(images), Role.AUDIT, step=1)
    beside = dataclasses.replace(new, ids=new.ids.repeat(2).flip(0))
    company = torch.cat((originals, images)).flip(0)
    return [
        (images, place.at(draw=0)[few]),
        (images, place[few]),
        (images, new),
        (originals, new),
        (company, beside),
    ]


def _with_gradients(defended: Defended, images: Tensor, draws: Draws) -> Tensor:
    """Return the logits as an attack along the declared backward pass sees them."""
    with torch.enable_grad():
        return defended.logits(images.detach().clone().requires_grad_(True), draws).detach()


def _middle(scored: Tensor, draws: int) -> int:
    """Return the number of one of the judge's later draws, which follows from the images: a defense that lies
    to all draws but the first cannot leave it out."""
    return int(content_ids(scored).sum()) % (draws - 1) + 1 if draws > 1 else 0


def _compared(first: Tensor, middle: Tensor, found: list[Tensor]) -> Tensor:
    """Return (n,) int8 bits of `LOOKS` for the answers to `_second_looks` and with gradients."""
    alone, again, new, _, company, gradients = found
    later = company.flip(0)[len(new) :]
    changed = different(first, alone) | different(middle, again)
    bits = changed * LOOKS["alone"] + different(new, later) * LOOKS["later"]
    return (bits + different(new, gradients) * LOOKS["gradients"] + LOOKS["asked"]).to(torch.int8)


def _mark(looks: Tensor, ids: Tensor, question: Question, answer: Tensor) -> None:
    """Add to `looks` whether an attack's repeated query was answered as before."""
    known, other = LOOKS["replayed"], LOOKS["attack"]
    changed = different(question.logits, answer)
    for number, differs in zip(question.draws.ids.tolist(), changed.tolist(), strict=True):
        looks[ids == number] |= known | (other if differs else 0)


def different(first: Tensor, second: Tensor) -> Tensor:
    """Return (n,) bool: whether two (n, classes) logits differ by more than rounding."""
    size = torch.maximum(
        first.amax(dim=1) - first.amin(dim=1), second.amax(dim=1) - second.amin(dim=1)
    )
    return ~((first - second).abs().amax(dim=1) <= DIFFERENT * size)
