"""Give an attack its view of a defended model, with no more access than the attack declares.

The view, not the attack, counts forwards, backwards and queries for each sample, and gathers the evidence
that the audit needs: vanished gradients, and images that were fooled at some valid query. So a library's
attack is observed exactly as a native one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.geometry import TOLERANCE, norms
from harness.random import Draws, Role
from harness.targets import dead_pixels
from harness.targets.defended import Defended
from harness.types import Access, Backward, Batch, Gradient, HarnessError, ThreatModel

_LEVEL = {"none": 0, "labels": 1, "scores": 2, "gradients": 3}


_NEVER = torch.iinfo(torch.int64).max
_ROUNDINGS = 4
"""The margin, in roundings of the largest logit, by which a prediction in half precision must be wrong."""


class QueryBudgetSpent(Exception):
    """Raised where a sample exceeds `max_queries`; the runner then takes the view's candidates."""


@dataclasses.dataclass
class Evidence:
    """The observations of a view, for each sample of its batch: tensors of shape (N,)."""

    forwards: Tensor
    backwards: Tensor
    dead_gradients: Tensor
    """The number of backwards with a dead gradient: one that is the same in every pixel (usually zero) though
    the image was classified correctly, or one that is not finite."""
    dead_pixels: Tensor
    """The number of probed pixels without a gradient (`harness.targets.dead_pixels`)."""
    probed_pixels: Tensor
    """The number of pixels that change the classifier's input and were tested for a gradient."""
    first_fooled: Tensor
    """The number of the first forward inside ball and box with a wrong prediction; -1 where there is none."""
    fooled_looks: Tensor
    """The number of looks inside ball and box with a wrong prediction. A look is the first draw of a gradient
    step, or a query of an attack that sees no gradients (as Tramer et al. 2020 count)."""

    @classmethod
    def empty(cls, count: int, device: torch.device) -> Evidence:
        zeros = torch.zeros(count, dtype=torch.int64, device=device)
        copies = (zeros.clone(), zeros.clone(), zeros.clone(), zeros.clone())
        return cls(zeros, *copies, first_fooled=zeros - 1, fooled_looks=zeros.clone())


LOOKS = 8
"""The number of images of an attack's last queries that are kept, so that the judge can repeat them."""
FEWER_LOOKS = 2
"""The number of images of each later batch that the judge asks about again: a defense may know the first."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A query of an attack to the victim, with the logits of the answer."""

    images: Tensor
    draws: Draws
    logits: Tensor


class View:
    """A defended model as one attack sees it for one batch. It implements `harness.types.Victim`."""

    def __init__(
        self,
        defended: Defended,
        batch: Batch,
        threat: ThreatModel,
        access: Access,
        *,
        role: Role = Role.ATTACK,
        max_queries: int | None = None,
        probed: int = dead_pixels.IMAGES,
        on_pass: Callable[[int], None] | None = None,
    ) -> None:
        """Serve a batch, of which the first `probed` images are tested for dead pixels."""
        self._defended = defended
        self._searched = defended.quick(batch.images.device)
        self._batch = batch
        self._threat = threat
        self._access = access
        self._role = role
        self._max_queries = max_queries
        self._on_pass = on_pass or (lambda images: None)
        self._sorted_ids, self._order = torch.sort(batch.ids)
        self.evidence = Evidence.empty(len(batch), batch.ids.device)
        self.asked: dict[bool, Question] = {}
        """The last query with gradients (True), and the last without (False)."""
        self._few = slice(0, probed)
        self._probed: set[Backward] = set()
        self.candidates = batch.images.clone() if max_queries is not None else None

    @property
    def classes(self) -> int:
        return self._defended.classes

    @property
    def randomised(self) -> bool:
        return self._defended.randomised

    @property
    def backward_passes(self) -> tuple[str, ...]:
        return self._defended.defense.offered_backward_passes

    def labels(self, images: Tensor, draws: Draws) -> Tensor:
        self._need("labels")
        return self._forward(images, draws).argmax(dim=1)

    def logits(self, images: Tensor, draws: Draws) -> Tensor:
        self._need("scores")
        return self._forward(images, draws)

    def transform(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the defense's transformation without gradients, which a white-box adversary knows."""
        self._need("gradients")
        self._refuse_other_roles(draws)
        with torch.no_grad():
            return self._defended.transform(images, draws)

    def gradient(
        self,
        images: Tensor,
        draws: Draws,
        loss: Callable[[Tensor], Tensor],
        *,
        backward: Backward = "declared",
        samples: int = 1,
    ) -> Gradient:
        self._need("gradients")
        at = self._positions(draws)
        sums: list[Tensor] = []
        for sample in range(samples):
            place = draws.at(draw=draws.draw * samples + sample) if samples > 1 else draws
            self._spend(at, images)
            pixels = images.detach().requires_grad_(True)
            with torch.enable_grad():
                scores = self._searched.logits(pixels, place, backward=backward)
                objective = loss(scores)
                slope = self._differentiate(objective, pixels)
            self._note(images, place, scores, gradients=True)
            right = self._watch(
                at, images, scores.detach(), self._searched.precision, look=sample == 0
            )
            slope = self._watch_gradient(at, slope, right)
            scores = scores.detach()
            seen = [slope, objective.detach(), scores, right, scores.softmax(dim=1)]
            sums = seen if not sums else [a + b for a, b in zip(sums, seen, strict=True)]
        self._probe_pixels(at, images, draws, backward)
        return Gradient(*(sums if samples == 1 else [total / samples for total in sums]))

    def module(self, batch: Batch, draws: Draws) -> nn.Module:
        self._need("labels")
        return _Module(self, batch, draws)

    @property
    def access(self) -> Access:
        return self._access

    def _need(self, access: Access) -> None:
        if _LEVEL[self._access] < _LEVEL[access]:
            raise HarnessError(
                f"an attack with access to {self._access} asked for {access}: "
                "declare the access that the attack needs in its class"
            )

    def _positions(self, draws: Draws) -> Tensor:
        """Return the (n,) positions in the batch of the samples that the draws name."""
        self._refuse_other_roles(draws)
        return self._order[torch.searchsorted(self._sorted_ids, draws.ids)]

    def _refuse_other_roles(self, draws: Draws) -> None:
        if draws.role != self._role:
            raise HarnessError(
                f"an attack asked under the draws of {Role(draws.role).name}: its own are those of "
                f"{self._role.name}, at draws.at(step=..., draw=...)",
                page="plugins",
            )

    def _note(self, images: Tensor, draws: Draws, logits: Tensor, *, gradients: bool) -> None:
        few = slice(0, LOOKS)
        kept = images[few].detach().clone()  # an attack may go on in place
        place = dataclasses.replace(draws, ids=draws.ids[few].clone())
        self.asked[gradients] = Question(kept, place, logits[few].detach().clone())

    def _spend(self, at: Tensor, images: Tensor) -> None:
        counts = self.evidence.forwards
        if self._max_queries is not None and len(at):
            spent = counts.index_add(0, at, torch.ones_like(at))
            if int(spent.max()) > self._max_queries:
                raise QueryBudgetSpent
        counts.index_add_(0, at, torch.ones_like(at))
        self._on_pass(len(images))

    def _forward(self, images: Tensor, draws: Draws) -> Tensor:
        at = self._positions(draws)
        self._spend(at, images)
        with torch.no_grad():
            scores = self._defended.logits(images, draws)
        self._note(images, draws, scores, gradients=False)
        self._watch(at, images, scores, look=self._access != "gradients")
        return scores

    def _watch(
        self,
        at: Tensor,
        images: Tensor,
        scores: Tensor,
        precision: torch.dtype = torch.float32,
        *,
        look: bool,
    ) -> Tensor:
        """Note samples that are fooled inside the ball; return (n,) floats, 1 where the prediction is right.

        In half precision a wrong prediction counts only beyond rounding, so that no image leaves an
        attack that the judge, in single precision, would find right.
        """
        images = images.detach()
        labels = self._batch.labels[at]
        if precision == torch.float32:
            right = scores.argmax(dim=1) == labels
        else:
            slack = _ROUNDINGS * torch.finfo(precision).eps * scores.abs().amax(dim=1)
            right = scores.amax(dim=1) <= scores.gather(1, labels[:, None]).squeeze(1) + slack
        distance = norms(images - self._batch.images[at], self._threat.norm)
        boxed = ((images >= 0) & (images <= 1)).flatten(1).all(dim=1)
        inside = boxed & (distance <= self._threat.epsilon + TOLERANCE)
        fooled = inside & ~right
        # A library may ask about one sample in several rows; the least number stands, and nothing
        # here waits for a GPU.
        number = torch.where(fooled, self.evidence.forwards[at], _NEVER)
        seen = self.evidence.first_fooled
        first = torch.where(seen < 0, _NEVER, seen).scatter_reduce_(0, at, number, "amin")
        seen.copy_(torch.where(first == _NEVER, -1, first))
        if look:
            self.evidence.fooled_looks.index_add_(0, at, fooled.to(torch.int64))
        if self.candidates is not None:
            self.candidates[at[fooled]] = images[fooled]
        return right.to(scores.dtype)

    def _watch_gradient(self, at: Tensor, slope: Tensor, right: Tensor) -> Tensor:
        """Count dead gradients, and return the gradients with zeros in place of those that are not finite.

        A loss may be flat by design where the image is fooled, so a zero counts only where it is not.
        """
        flat = slope.flatten(1)
        finite = torch.isfinite(flat).all(dim=1)
        constant = flat.amax(dim=1) == (flat.amin(dim=1) if flat.shape[1] > 1 else 0.0)
        dead = ~finite | (constant & (right > 0))
        self.evidence.backwards.index_add_(0, at, torch.ones_like(at))
        self.evidence.dead_gradients.index_add_(0, at, dead.to(at.dtype))
        return torch.where(finite.reshape(-1, 1, 1, 1), slope, 0.0)

    def _probe_pixels(self, at: Tensor, images: Tensor, draws: Draws, backward: Backward) -> None:
        """Test a few pixels of a few images for a gradient, once for each backward pass of a view."""
        if backward in self._probed or self._defended.defense.randomness == "per-input":
            return  # a moved pixel would draw anew
        self._probed.add(backward)
        few = self._few
        step = min(self._threat.epsilon, dead_pixels.LARGEST_STEP)
        probed, dead = dead_pixels.probe(self._defended, images[few], draws[few], backward, step)
        self.evidence.probed_pixels.index_add_(0, at[few], probed)
        self.evidence.dead_pixels.index_add_(0, at[few], dead)

    @staticmethod
    def _differentiate(objective: Tensor, pixels: Tensor) -> Tensor:
        if not objective.requires_grad:  # a transformation that cuts the graph
            return torch.zeros_like(pixels)
        (slope,) = torch.autograd.grad(objective.sum(), pixels, allow_unused=True)
        return torch.zeros_like(pixels) if slope is None else slope


class _Module(nn.Module):
    """The view as a module for attacks of other libraries. The weights are no submodule, so out of reach.

    Libraries drop and repeat images as they like. A row is matched to its sample by position where the count
    fits, else by the nearest original image.
    """

    def __init__(self, view: View, batch: Batch, draws: Draws) -> None:
        super().__init__()
        self._view = [view]
        self._samples = batch
        self._draws = draws
        self._calls = 0
        # Libraries read the device from the first parameter.
        self.device_hint = nn.Parameter(batch.images.new_zeros(()), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        view = self._view[0]
        draws = dataclasses.replace(self._draws, ids=self._ids(images)).at(step=self._calls)
        self._calls += 1
        if not (images.requires_grad and torch.is_grad_enabled()):
            return view._forward(images, draws)
        view._need("gradients")
        at = view._positions(draws)
        view._spend(at, images)
        # The hook is on an alias: a library that passes the same leaf at every step would gather hooks
        # on it, each counting every backward.
        pixels = images.view_as(images)
        right: Tensor  # known by the time that the hook runs
        pixels.register_hook(  # type: ignore[no-untyped-call]
            lambda slope: view._watch_gradient(at, slope, right)
        )
        logits = view._defended.logits(pixels, draws, backward="declared")
        view._note(images, draws, logits, gradients=True)
        right = view._watch(at, images, logits.detach(), look=True)
        if not logits.requires_grad:
            # A transformation that cuts the graph has dead gradients; autograd would raise.
            logits = logits + 0.0 * pixels.flatten(1).sum(dim=1, keepdim=True)
        return logits

    def _ids(self, images: Tensor) -> Tensor:
        if len(images) == len(self._samples):
            return self._samples.ids
        originals = self._samples.images.flatten(1)
        nearest = torch.cdist(images.detach().flatten(1), originals).argmin(dim=1)
        return self._samples.ids[nearest]
