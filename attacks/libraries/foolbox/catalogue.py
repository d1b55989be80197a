"""What foolbox 3.3 ships, and how each attack serves here. Data: imports nothing of foolbox."""

from __future__ import annotations

from harness.attacks.libraries.library_attack import BOTH, Sheet, refused

_L1 = "it bounds the L1 norm, the harness has linf and l2"
_SIGNED = (
    "divides by the greatest value of the noise instead of the greatest absolute one: some images leave "
    "the ball, and are flagged"
)

_DESCENT = {
    "FastGradientAttack": "one gradient step",
    "BasicIterativeAttack": "projected gradient without random start, last iterate",
    "AdamBasicIterativeAttack": "projected Adam without random start, last iterate",
    "ProjectedGradientDescentAttack": "projected gradient with random start, last iterate",
    "AdamProjectedGradientDescentAttack": "projected Adam with random start, last iterate",
    "MomentumIterativeFastGradientMethod": "projected gradient with momentum, last iterate",
}
_L2_NOISE = {
    "L2AdditiveGaussianNoiseAttack": "Gaussian noise of fixed L2 size",
    "L2AdditiveUniformNoiseAttack": "uniform noise of fixed L2 size",
    "L2ClippingAwareAdditiveGaussianNoiseAttack": "Gaussian noise of fixed L2 size after clipping",
    "L2ClippingAwareAdditiveUniformNoiseAttack": "uniform noise of fixed L2 size after clipping",
    "L2RepeatedAdditiveGaussianNoiseAttack": "Gaussian noise, the first of 100 draws that fools",
    "L2RepeatedAdditiveUniformNoiseAttack": "uniform noise, the first of 100 draws that fools",
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": "the same, of fixed size after clipping",
    "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack": "the same, of fixed size after clipping",
}
_ALIASES = {
    "FGSM": "LinfFastGradientAttack",
    "FGM": "L2FastGradientAttack",
    "PGD": "LinfProjectedGradientDescentAttack",
    "LinfPGD": "LinfProjectedGradientDescentAttack",
    "L2PGD": "L2ProjectedGradientDescentAttack",
    "L1PGD": "L1ProjectedGradientDescentAttack",
    "AdamPGD": "LinfAdamProjectedGradientDescentAttack",
    "LinfAdamPGD": "LinfAdamProjectedGradientDescentAttack",
    "L2AdamPGD": "L2AdamProjectedGradientDescentAttack",
    "L1AdamPGD": "L1AdamProjectedGradientDescentAttack",
    "MIFGSM": "LinfMomentumIterativeFastGradientMethod",
}


def _minimum(summary: str, access: str = "labels", note: str = "") -> Sheet:
    """Describe a minimum-norm attack. The threat model's norm judges it, whatever norm it minimises."""
    return Sheet(summary=summary, access=access, norms=BOTH, bounded=False, note=note)  # type: ignore[arg-type]


def _sheets() -> dict[str, Sheet]:
    sheets = {}
    for kind, summary in _DESCENT.items():
        sheets["Linf" + kind] = Sheet(summary=summary + " (L-infinity)")
        sheets["L2" + kind] = Sheet(summary=summary + " (L2)", norms=("l2",))
        sheets["L1" + kind] = refused(summary + " (L1)", _L1)
    sheets["SparseL1DescentAttack"] = refused("sparse projected gradient (L1)", _L1)
    for name, summary in _L2_NOISE.items():
        sheets[name] = Sheet(summary=summary, access="labels", norms=("l2",))
    sheets |= {
        "LinfAdditiveUniformNoiseAttack": Sheet(
            summary="uniform noise in the L-infinity ball", access="labels", note=_SIGNED
        ),
        "LinfRepeatedAdditiveUniformNoiseAttack": Sheet(
            summary="uniform noise, the first of 100 draws that fools",
            access="labels",
            note=_SIGNED,
        ),
        "L2ContrastReductionAttack": Sheet(
            summary="contrast reduced by a fixed L2 size", access="labels", norms=("l2",)
        ),
        "VirtualAdversarialAttack": Sheet(
            summary="one step along the largest curvature of the KL divergence",
            norms=("l2",),
            preset={"steps": 10},
            note="NaN where the gradient of an image vanishes: here the original",
        ),
        "GenAttack": refused("genetic algorithm on scores", "it is targeted only"),
        "DDNAttack": _minimum("decoupled direction and norm, minimum L2", "gradients"),
        "L2CarliniWagnerAttack": _minimum(
            "Carlini and Wagner, minimum L2, binary search over c",
            "gradients",
            "returns black images on failure: here the originals",
        ),
        "EADAttack": _minimum(
            "elastic net, minimum L1",
            "gradients",
            "returns black images on failure: here the originals",
        ),
        "NewtonFoolAttack": _minimum(
            "Newton steps on the softmax, minimum L2",
            "gradients",
            "NaN where a gradient vanishes: here the original",
        ),
        "L2DeepFoolAttack": _minimum("linearised boundaries, minimum L2", "gradients"),
        "LinfDeepFoolAttack": _minimum("linearised boundaries, minimum L-infinity", "gradients"),
        "L0FMNAttack": _minimum("fast minimum norm, L0", "gradients"),
        "L1FMNAttack": _minimum("fast minimum norm, L1", "gradients"),
        "L2FMNAttack": _minimum("fast minimum norm, L2", "gradients"),
        "LInfFMNAttack": _minimum("fast minimum norm, L-infinity", "gradients"),
        "InversionAttack": _minimum("inverts the pixels"),
        "BinarySearchContrastReductionAttack": _minimum("least contrast reduction, binary search"),
        "LinearSearchContrastReductionAttack": _minimum("least contrast reduction, linear search"),
        "GaussianBlurAttack": _minimum("least Gaussian blur"),
        "SpatialAttack": _minimum("rotations and translations on a grid"),
        "SaltAndPepperNoiseAttack": _minimum("salt and pepper noise"),
        "LinearSearchBlendedUniformNoiseAttack": _minimum("blends with uniform noise"),
        "DatasetAttack": _minimum("the nearest images of the batch"),
        "BoundaryAttack": _minimum("random walk along the boundary, minimum L2"),
        "HopSkipJumpAttack": _minimum("boundary attack with estimated gradients, minimum L2"),
        "PointwiseAttack": _minimum("resets pixels while it stays misclassified, minimum L0"),
        "BinarizationRefinementAttack": refused(
            "moves pixels to a threshold", "it works only on models that binarise their input"
        ),
    }
    for norm in ("L0", "L1", "L2", "Linfinity"):
        summary = f"gradient walk along the boundary, minimum {norm}"
        sheets[f"{norm}BrendelBethgeAttack"] = _minimum(
            summary, "gradients", "needs the package numba"
        )
    return sheets | {alias: sheets[name] for alias, name in _ALIASES.items()}


SHEETS: dict[str, Sheet] = _sheets()

STARTED = (
    "BoundaryAttack",
    "HopSkipJumpAttack",
    "PointwiseAttack",
    "L0BrendelBethgeAttack",
    "L1BrendelBethgeAttack",
    "L2BrendelBethgeAttack",
    "LinfinityBrendelBethgeAttack",
)
"""Attacks that walk from a misclassified starting point. `starting_points.find` finds it."""

BLACK_ON_FAILURE = ("L2CarliniWagnerAttack", "EADAttack")
