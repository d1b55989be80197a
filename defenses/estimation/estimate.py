"""The result of an estimator."""

from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """Estimated matrices and how they were reached.

    value: (..., H, W), same dtype and device as the input.
    iterations: (...) int64, steps that this matrix took before it stopped.
    gap: (...) float, an upper bound on the relative duality gap, (primal - dual) / primal; NaN for
        estimators that solve no optimisation problem (`usvt`).
    converged: (...) bool, whether the stopping rule was met within the allowed iterations.
    """

    value: Tensor
    iterations: Tensor
    gap: Tensor
    converged: Tensor
