"""Selection of the iterate that an ascent returns, and of the best of several ascents.

The loss of a step's own draws is a poor judge against a randomised victim: the greatest of many noisy
losses is a lucky one. So candidates are compared on draws that no step has seen, the same for all.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from harness.attacks.losses import LossName, against, margin
from harness.random import Draws
from harness.types import Gradient, Victim

REFEREE, RANKING = -2, -3
"""Steps at which candidates are compared and classes are ranked: apart from those of the ascent (0 and
after), however many there are."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`wrong` (N,) the share of draws that are misclassified, and `loss` (N,) over those draws."""

    wrong: Tensor
    loss: Tensor

    def __getitem__(self, index: Tensor) -> Verdict:
        return Verdict(self.wrong[index], self.loss[index])

    def beats(self, other: Verdict) -> Tensor:
        """Return (N,) bool: true where more draws are wrong, or as many at a greater loss."""
        as_wrong = self.wrong == other.wrong
        return torch.where(as_wrong, self.loss > other.loss, self.wrong > other.wrong)

    def or_else(self, better: Tensor, other: Verdict) -> Verdict:
        """Return this verdict where `better` (N,) says so, and the other elsewhere."""
        return Verdict(
            torch.where(better, self.wrong, other.wrong), torch.where(better, self.loss, other.loss)
        )


@dataclasses.dataclass(frozen=True)
class Referee:
    """Judges candidates for the images of `draws` on `looks` draws of their own, a forward each."""

    victim: Victim
    loss: LossName
    looks: int
    draws: Draws

    def __getitem__(self, index: Tensor) -> Referee:
        return dataclasses.replace(self, draws=self.draws[index])

    def judge(self, images: Tensor, labels: Tensor) -> Verdict:
        """Judge candidates (N, C, H, W) by `looks` forwards each."""
        wrong = torch.zeros(len(images), device=images.device)
        loss = torch.zeros_like(wrong)
        mean = None
        for logits in self._looks(images, REFEREE):
            wrong += (logits.argmax(dim=1) != labels).to(wrong)
            loss += against(self.loss, labels)(logits).to(loss) / self.looks
            seen = logits.softmax(dim=1) / self.looks
            mean = seen if mean is None else mean + seen
        if self.loss == "probability" and mean is not None:
            loss = margin(mean, labels)
        return Verdict(wrong / self.looks, loss)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the mean class probabilities over `looks` draws, (N, K); one forward each."""
        return torch.stack([look.softmax(1) for look in self._looks(images, RANKING)]).mean(dim=0)

    def _looks(self, images: Tensor, step: int) -> list[Tensor]:
        place = self.draws.at(step=step)
        return [self.victim.logits(images, place.at(draw=number)) for number in range(self.looks)]


class Best:
    """The best iterate that one ascent has seen.

    A deterministic victim's every iterate is compared by what its step saw. A randomised one's losses
    name one candidate a span, and the referee decides between that, the span's last and the best so far.
    """

    def __init__(self, referee: Referee, labels: Tensor) -> None:
        self._referee, self._labels = referee, labels
        self._sampled = referee.victim.randomised
        self._images: Tensor | None = None
        self._verdict: Verdict | None = None
        self._candidate: tuple[Tensor, Tensor] | None = None  # images, loss

    def see(self, x: Tensor, gradient: Gradient) -> None:
        """Take note of an iterate whose gradient has been asked for."""
        if not self._sampled:
            self._compare(x, Verdict(1 - gradient.correct, gradient.loss))
        elif self._candidate is None:
            self._candidate = x, gradient.loss
        else:
            images, greatest = self._candidate
            better = gradient.loss > greatest
            self._candidate = (
                torch.where(better.reshape(-1, 1, 1, 1), x, images),
                torch.where(better, gradient.loss, greatest),
            )

    def settle(self, x: Tensor) -> Tensor:
        """Return the best of all that was seen and of `x`, the iterate that comes next."""
        if self._candidate is not None:
            candidate, self._candidate = self._candidate[0], None
            self._compare(candidate, self._referee.judge(candidate, self._labels))
        self._compare(x, self._referee.judge(x, self._labels))
        return self.seen

    @property
    def seen(self) -> Tensor:
        """The best of the candidates compared so far."""
        assert self._images is not None
        return self._images

    def _compare(self, x: Tensor, verdict: Verdict) -> None:
        if self._images is None or self._verdict is None:
            self._images, self._verdict = x, verdict
            return
        better = verdict.beats(self._verdict)
        self._images = torch.where(better.reshape(-1, 1, 1, 1), x, self._images)
        self._verdict = verdict.or_else(better, self._verdict)
