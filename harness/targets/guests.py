"""Guard a training against the code of guests: a defense, a model and an inner attack, at every step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from harness.cells import guard, process
from harness.random import Draws
from harness.targets import memory, training
from harness.types import Batch, HarnessError


@contextlib.contextmanager
def pure(what: str) -> Iterator[None]:
    """Restore the process after a training.

    Random states are restored without an error, because dropout draws from them.

    Raises:
        HarnessError: defense, model or inner attack changed anything else of the process.
    """
    process.warm()
    with guard.watched(noted=False) as found:
        yield
    lasting = [name for name in found if name != process.RANDOM]
    guard.history.extend(lasting)
    if lasting:
        raise HarnessError(
            f"{what} changed the process while it was trained: {guard.named(lasting)}. Its weights are not "
            "kept: a defense, a model and an attack must leave all but their own tensors alone",
            page="plugins",
        )


def guarded(loss: training.Loss, stop: training.Stop) -> training.Loss:
    """Return a loss that raises only a GuestError, a refusal, a stop of the run, or exhausted memory."""

    def passes(error: BaseException) -> bool:
        return stop.meant(error) or memory.ran_out(error)

    def guarded_loss(module: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        return guard.call(lambda: loss(module, batch, draws), passes)

    return guarded_loss
