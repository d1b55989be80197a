"""What the Adversarial Robustness Toolbox 1.20 ships for evasion, and how each attack serves here.

Data: imports nothing of the toolbox.
"""

from __future__ import annotations

from harness.attacks.libraries.library_attack import BOTH, Sheet, refused
from harness.types import Access

_PATCH = "it makes a printable patch or light, not a perturbation in a ball"
_DETECTION = "it attacks object detectors or trackers"
_AUDIO = "it attacks speech recognisers"
_VIDEO = "it attacks video"
_TENSORFLOW = "it runs on TensorFlow only"
_FEATURES = "it needs a guide image and hidden layers, which the view does not show"
_RANDOM = "no random start by default (num_random_init=0): one here"

_REFUSED = {
    "AdversarialPatch": _PATCH,
    "AdversarialPatchNumpy": _PATCH,
    "AdversarialPatchPyTorch": _PATCH,
    "AdversarialPatchTensorFlowV2": _PATCH,
    "LaserAttack": _PATCH,
    "GRAPHITEBlackbox": "it is targeted only and makes a printable patch",
    "GRAPHITEWhiteboxPyTorch": "it is targeted only and makes a printable patch",
    "AdversarialTexturePyTorch": _DETECTION,
    "DPatch": _DETECTION,
    "RobustDPatch": _DETECTION,
    "OverloadPyTorch": _DETECTION,
    "SNAL": _DETECTION,
    "CarliniWagnerASR": _AUDIO,
    "ImperceptibleASR": _AUDIO,
    "ImperceptibleASRPyTorch": _AUDIO,
    "FrameSaliencyAttack": _VIDEO,
    "OverTheAirFlickeringPyTorch": _VIDEO,
    "MalwareGDTensorFlow": "it attacks malware detectors",
    "DecisionTreeAttack": "it attacks decision trees",
    "HighConfidenceLowUncertainty": "it attacks Gaussian processes",
    "LowProFool": "it attacks tabular data",
    "FeatureAdversariesNumpy": _FEATURES,
    "FeatureAdversariesPyTorch": _FEATURES,
    "FeatureAdversariesTensorFlowV2": _FEATURES,
    "ProjectedGradientDescentTensorFlowV2": _TENSORFLOW,
    "TargetedUniversalPerturbation": "it is targeted only",
    "GeoDA": "it calls numpy.mat, which numpy 2 removed, and reads and writes files where it is run",
    "CompositeAdversarialAttackPyTorch": "it needs the package kornia and colour images, and bounds hue, "
    "saturation and rotation instead of a norm",
}


def _minimum(
    summary: str,
    access: Access = "gradients",
    *,
    single: bool = False,
    probabilities: bool = False,
    note: str = "",
    **preset: object,
) -> Sheet:
    """Describe a minimum-norm attack. The threat model's norm judges it, whatever norm it minimises."""
    return Sheet(
        summary=summary,
        access=access,
        norms=BOTH,
        bounded=False,
        single=single,
        probabilities=probabilities,
        note=note,
        preset=preset,
    )


SHEETS: dict[str, Sheet] = {name: refused("", reason) for name, reason in _REFUSED.items()} | {
    "FastGradientMethod": Sheet(summary="one gradient step", norms=BOTH),
    "BasicIterativeMethod": Sheet(
        summary="projected gradient without random start", note="last iterate"
    ),
    "MomentumIterativeMethod": Sheet(
        summary="projected gradient with momentum", norms=BOTH, note="last iterate"
    ),
    "ProjectedGradientDescent": Sheet(
        summary="projected gradient", norms=BOTH, preset={"num_random_init": 1}, note=_RANDOM
    ),
    "ProjectedGradientDescentNumpy": Sheet(
        summary="projected gradient in numpy",
        norms=BOTH,
        preset={"num_random_init": 1},
        note=_RANDOM,
    ),
    "ProjectedGradientDescentPyTorch": Sheet(
        summary="projected gradient in PyTorch",
        norms=BOTH,
        preset={"num_random_init": 1},
        note=_RANDOM,
    ),
    "AutoProjectedGradientDescent": Sheet(summary="Auto-PGD", norms=BOTH),
    "AutoConjugateGradient": Sheet(summary="Auto-PGD along conjugate gradients", norms=BOTH),
    "RescalingAutoConjugateGradient": Sheet(
        summary="conjugate gradients with rescaled steps", norms=BOTH
    ),
    "AutoAttack": Sheet(
        summary="APGD twice, DeepFool and Square; the reference is `autoattack`",
        norms=BOTH,
        least_classes=4,
        note="imports the undeclared package multiprocess, which it does not use: the bridge stands in",
    ),
    "SquareAttack": Sheet(summary="random search with squares", access="scores", norms=BOTH),
    "UniversalPerturbation": Sheet(
        summary="one perturbation for the whole batch", norms=BOTH, note="depends on the batch"
    ),
    "VirtualAdversarialMethod": Sheet(
        summary="one step along the largest curvature of the KL divergence, from probabilities",
        access="scores",
        norms=("l2",),
        probabilities=True,
        note="a query for each pixel and iteration",
    ),
    "CarliniL0Method": _minimum("Carlini and Wagner, minimum L0"),
    "CarliniL2Method": _minimum("Carlini and Wagner, minimum L2, binary search over c"),
    "CarliniLInfMethod": _minimum("Carlini and Wagner, minimum L-infinity"),
    "DeepFool": _minimum("linearised boundaries, minimum L2"),
    "ElasticNet": _minimum("elastic net, minimum L1"),
    "NewtonFool": _minimum("Newton steps on the softmax, minimum L2", probabilities=True),
    "SaliencyMapMethod": _minimum(
        "saliency map, minimum L0, targeted at the next class",
        note="it has no untargeted form: the target is label + 1 modulo the classes",
    ),
    "ShadowAttack": _minimum("smooth shadows of low total variation", single=True),
    "Wasserstein": _minimum(
        "projected Sinkhorn in a Wasserstein ball",
        note="its own eps; regularization 3000 overflows where gradients are large: 100 here",
        regularization=100.0,
        max_iter=50,
    ),
    "SpatialTransformation": _minimum(
        "one rotation and translation for the whole batch",
        "labels",
        note="does nothing by default: here translations to 10 % and rotations to 30 degrees",
        max_translation=10.0,
        num_translations=3,
        max_rotation=30.0,
        num_rotations=5,
    ),
    "BoundaryAttack": _minimum(
        "random walk along the boundary, minimum L2",
        "labels",
        single=True,
        note="the original where it finds no start",
    ),
    "HopSkipJump": _minimum(
        "boundary attack with estimated gradients, minimum of the norm", "labels", single=True
    ),
    "SignOPTAttack": _minimum(
        "signs of the distance's gradient from labels", "labels", single=True
    ),
    "SimBA": _minimum(
        "one direction at a time, from probabilities", "scores", single=True, probabilities=True
    ),
    "PixelAttack": _minimum(
        "few pixels (th) by differential evolution",
        "scores",
        single=True,
        probabilities=True,
        note="the search for the least number of pixels (th=none) takes hours: here 5 pixels",
        th=5,
    ),
    "ThresholdAttack": Sheet(
        summary="differential evolution in the L-infinity ball",
        access="scores",
        single=True,
        probabilities=True,
        preset={"es": 1},
        note="epsilon is rounded down to grey values less one; es=0 needs the undeclared package cma",
    ),
    "ZooAttack": _minimum(
        "gradients from scores, minimum L2",
        "scores",
        single=True,
        note="its defaults (10 steps of 0.01 with c = 0.001) move nothing: 100 steps of 0.1, c = 10 here",
        max_iter=100,
        learning_rate=0.1,
        initial_const=10.0,
        use_resize=False,
        use_importance=False,
        nb_parallel=64,
    ),
}

PREDICTED = (
    "BoundaryAttack",
    "DeepFool",
    "HopSkipJump",
    "NewtonFool",
    "SignOPTAttack",
    "SpatialTransformation",
    "VirtualAdversarialMethod",
)
"""Attacks that leave the predicted class, whatever y is: they would walk a misclassified image back to its
true class. The bridge leaves such images alone."""
