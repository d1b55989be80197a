"""The judge's second looks taken again: a defense is a function of images and draws, so that they repeat.

The questions are rebuilt from the stored batches; the judge's code is not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.audit.rescore import Rescoring
from harness.random import Draws, Role, content_ids
from harness.results.consistency import changed_answers
from harness.targets.views import FEWER_LOOKS, LOOKS

MOVED = 0.1
"""Share of the range of an image's logits beyond which a change is no rounding."""


def looks(again: Rescoring, *, replay: bool) -> dict[str, int]:
    """Return how many images were asked about again, and how many were answered otherwise.

    Args:
        replay: whether the attack asked this very model, so that its questions can be asked again.
    """
    found = dict.fromkeys(("asked", "alone", "later", "gradients", "replayed", "attack"), 0)

    def answer(images: Tensor, draws: Draws, *, gradients: bool = False) -> Tensor:
        pixels = images.to(again.device)
        place = dataclasses.replace(draws, ids=draws.ids.to(again.device))
        with torch.set_grad_enabled(gradients):
            if gradients:
                pixels = pixels.clone().requires_grad_(True)
            return again.target.logits(pixels, place).detach().double().cpu()

    seed = again.record.cell.target.seed
    for batch in again.stored.batches:
        ids = again.batch.ids[batch]
        number = LOOKS if int(batch[0]) == 0 else FEWER_LOOKS
        shown, originals = again.shown[batch], again.batch.images[batch][:number]
        few = shown[:number]
        count = len(few)
        score = Draws(seed, ids, Role.SCORE)
        unmet = Draws(seed, content_ids(few), Role.AUDIT, step=1)
        among = answer(shown, score)[:count]
        alone = answer(few, score[:count])
        new = answer(few, unmet)
        # Beside the originals under the same draws, and in the reverse order.
        mixed = torch.cat((few.flip(0), originals.flip(0)))
        doubled = dataclasses.replace(unmet, ids=torch.cat((unmet.ids.flip(0), unmet.ids.flip(0))))
        later = answer(mixed, doubled)[:count].flip(0)
        slope = answer(few, unmet, gradients=True)
        found["asked"] += count
        for name, one, other in (
            ("alone", among, alone),
            ("later", new, later),
            ("gradients", new, slope),
        ):
            found[name] += int(_moved(one, other).sum())
    known: set[int] = set()
    otherwise: set[int] = set()
    for question in again.stored.asked if replay else ():
        now = answer(question.images, question.draws)
        known |= set(question.draws.ids.tolist())
        otherwise |= set(question.draws.ids[_moved(question.logits.double(), now)].tolist())
    found["replayed"], found["attack"] = len(known), len(otherwise)
    return found


def _moved(one: Tensor, other: Tensor) -> Tensor:
    """Return (n,) bool: the answers differ by more than rounding, or are no numbers."""
    span = torch.stack([each.amax(dim=1) - each.amin(dim=1) for each in (one, other)]).amax(dim=0)
    return ~((one - other).abs().amax(dim=1) <= MOVED * span)


def settled(
    stated: Mapping[str, int], found: Sequence[Mapping[str, int]], *, slack: int
) -> Mapping[str, int]:
    """Return the looks that a record must state, given those that were taken now.

    A defense that keeps notes answers otherwise each time: where it is in doubt now as it was then, the
    counts stand as stated.

    Args:
        found: taken at different times, in the order of asking.
        slack: how many outcomes another machine may have rounded differently.
    """
    if any(stated == each for each in found):
        return stated
    doubtful = [each for each in found if changed_answers(each)]
    first = found[0]
    possible = (
        stated.keys() == first.keys()
        and all(stated[name] == first[name] for name in ("asked", "replayed"))
        and all(0 <= stated[name] <= stated["asked"] for name in ("alone", "later", "gradients"))
        and 0 <= stated["attack"] <= stated["replayed"]
    )
    alike = bool(changed_answers(stated)) == bool(doubtful)
    if possible and alike and (doubtful or slack):
        return stated
    return doubtful[0] if doubtful else first
