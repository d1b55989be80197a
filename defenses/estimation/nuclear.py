"""Nuclear-norm minimisation (Candes and Recht 2009, in the penalised form that ME-Net uses)."""

from torch import Tensor

from .completion import as_estimate, certified_solver, complete
from .estimate import Estimate
from .inputs import check_stopping, chunk_of, per_image, prepare


def nuclear_norm(
    observed: Tensor,
    mask: Tensor,
    *,
    mu: float | Tensor = 1.0,
    gap: float = 1e-3,
    max_iterations: int = 1000,
    chunk: int | None = None,
) -> Estimate:
    """Minimise mu ||X||_* + ||M (X - A)||^2 over X, each image to a certified accuracy.

    observed: (..., H, W) float32 or float64, meant to lie in [-1, 1]; entries off the mask are not
        used, but must be finite.
    mask: bool, or 0 and 1, of a shape that broadcasts to that of `observed`.
    mu: above 0, one number or one an image, (...). ME-Net's numbers use 1.
    gap: relative duality gap, (primal - dual) / primal, to prove before an image stops: at least
        1e-5 in float32 and 1e-10 in float64.
    max_iterations: an image that has not got there returns as it is, with the gap it has.
    chunk: images solved at a time, bounding memory; None takes what suits the device.

    The value has exact gradients with respect to `observed` and `mu` (`implicit.py`). They cost
    nothing unless asked for. Raises TypeError or ValueError on unusable input, naming the images.
    """
    problems = prepare(observed, mask)
    check_stopping(gap, max_iterations, observed.dtype)
    found = complete(
        problems,
        per_image(mu, observed, "mu") / 2,  # half of the objective above, with lambda = mu / 2
        certified_solver(gap, max_iterations),
        chunk_of(chunk, problems),
    )
    return as_estimate(found, observed.shape)
