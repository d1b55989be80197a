"""What torchattacks 3.5 ships, and how each attack serves here. Data: imports nothing of torchattacks."""

from __future__ import annotations

from harness.attacks.libraries.library_attack import BOTH, Sheet, refused

_LAST = "last iterate"
_THREE = "its kernel is made for three channels"

SHEETS: dict[str, Sheet] = {
    "VANILA": Sheet(summary="returns the images: a control", access="labels", norms=BOTH),
    "GN": Sheet(
        summary="Gaussian noise of a given deviation (std), not bounded",
        access="labels",
        norms=BOTH,
        bounded=False,
    ),
    "FGSM": Sheet(summary="one gradient step"),
    "BIM": Sheet(summary="projected gradient without random start", note=_LAST),
    "RFGSM": Sheet(summary="gradient steps after a random sign step", note=_LAST),
    "PGD": Sheet(summary="projected gradient with random start", note=_LAST),
    "EOTPGD": Sheet(summary="projected gradient averaged over draws (eot_iter)", note=_LAST),
    "FFGSM": Sheet(summary="one large step from a random start"),
    "TPGD": Sheet(summary="projected gradient on the KL divergence", note=_LAST),
    "MIFGSM": Sheet(summary="projected gradient with momentum", note=_LAST),
    "UPGD": Sheet(summary="projected gradient with momentum, loss and EOT to choose", note=_LAST),
    "APGD": Sheet(
        summary="Auto-PGD",
        norms=BOTH,
        preset={"steps": 100},
        note="the original where it fails; the library's default is 10 steps, the paper's 100",
    ),
    "APGDT": Sheet(
        summary="Auto-PGD on the targeted DLR loss, all targets",
        norms=BOTH,
        preset={"steps": 100},
        least_classes=4,
        note="the original where it fails; the library's default is 10 steps, the paper's 100",
    ),
    "DIFGSM": Sheet(summary="projected gradient with input diversity", note=_LAST),
    "TIFGSM": Sheet(summary="translation-invariant gradient", channels=3, note=_THREE),
    "Jitter": Sheet(summary="projected gradient on the jitter loss", note=_LAST),
    "NIFGSM": Sheet(summary="Nesterov momentum", note=_LAST),
    "PGDRS": Sheet(
        summary="projected gradient against randomised smoothing (its own noise)", note=_LAST
    ),
    "SINIFGSM": Sheet(summary="Nesterov momentum, scale invariant", note=_LAST),
    "VMIFGSM": Sheet(summary="variance-tuned momentum", note=_LAST),
    "VNIFGSM": Sheet(summary="variance-tuned Nesterov momentum", note=_LAST),
    "SPSA": Sheet(
        summary="gradient estimated from scores",
        access="scores",
        preset={"nb_iter": 20},
        note="the library's default is one iteration",
    ),
    "PIFGSM": Sheet(summary="patch-wise gradient", channels=3, note=_THREE),
    "PIFGSMPP": Sheet(summary="patch-wise gradient with projection", channels=3, note=_THREE),
    "PGDL2": Sheet(summary="projected gradient with random start (L2)", norms=("l2",), note=_LAST),
    "PGDRSL2": Sheet(
        summary="projected gradient against randomised smoothing (L2)", norms=("l2",), note=_LAST
    ),
    "FAB": Sheet(
        summary="fast adaptive boundary",
        norms=BOTH,
        preset={"steps": 100},
        note="the original where its minimum lies outside the ball; the library's default is 10 steps",
    ),
    "Square": Sheet(
        summary="random search with squares, 5,000 queries",
        access="scores",
        norms=BOTH,
        note="the original where it fails",
    ),
    "AutoAttack": Sheet(
        summary="four attacks of 10 steps; the reference is `autoattack`",
        norms=BOTH,
        least_classes=4,
        note="10 steps instead of 100; the harness seeds it (the library takes the clock)",
    ),
    "CW": Sheet(
        summary="Carlini and Wagner, minimum L2, one c",
        norms=BOTH,
        bounded=False,
        note="no search over c; pixels of exactly 0 or 1, which it cannot move, go in as 0.0001 and "
        "0.9999; the original where it fails",
    ),
    "DeepFool": Sheet(
        summary="linearised boundaries, minimum L2", norms=BOTH, bounded=False, single=True
    ),
    "EADEN": Sheet(summary="elastic net, elastic-net decision", norms=BOTH, bounded=False),
    "EADL1": Sheet(summary="elastic net, minimum L1", norms=BOTH, bounded=False),
    "SparseFool": Sheet(summary="few pixels, minimum L0", norms=BOTH, bounded=False, single=True),
    "OnePixel": Sheet(
        summary="a given number of pixels by differential evolution",
        access="scores",
        norms=BOTH,
        bounded=False,
        single=True,
    ),
    "Pixle": Sheet(
        summary="moves pixels about", access="scores", norms=BOTH, bounded=False, single=True
    ),
    "JSMA": Sheet(
        summary="saliency map, minimum L0, targeted at the next class",
        norms=BOTH,
        bounded=False,
        single=True,
        note="it has no untargeted form: the target is label + 1 modulo the classes",
    ),
    "MultiAttack": refused("several attacks in turn", "it is a wrapper around attack objects"),
    "LGV": refused("averages of weights", "it trains the model further, whose weights are hidden"),
}
