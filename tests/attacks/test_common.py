"""Rules that every native attack keeps."""

from __future__ import annotations

import pytest
import torch

from harness.attacks.approximate_input import ApproximateInput
from harness.attacks.bpda import BPDA
from harness.attacks.clean import Clean
from harness.attacks.cw import CW
from harness.attacks.fgsm import FGSM
from harness.attacks.noise import Noise
from harness.attacks.pgd import PGD
from harness.attacks.projected_bpda import ProjectedBPDA
from harness.attacks.spsa import SPSA
from harness.attacks.square import Square
from harness.geometry import TOLERANCE, norms
from harness.registry import attacks
from harness.types import ThreatModel

from .conftest import Noisy, Plain, accuracy, attacked, draws_of, view_of

LINF, L2 = ThreatModel(epsilon=0.1), ThreatModel(epsilon=0.5, norm="l2")
NATIVE = [
    Clean(),
    Noise(),
    FGSM(eot=2),
    PGD(steps=3, restarts=2),
    CW(steps=3),
    BPDA(steps=3),
    ApproximateInput(steps=3),
    ProjectedBPDA(steps=3),
    SPSA(steps=3, samples=8),
    Square(queries=10),
]
EVERY = [
    pytest.param(attack, threat, defense, id=f"{type(attack).__name__}-{threat.norm}-{name}")
    for attack in NATIVE
    for threat in (LINF, L2)
    if threat.norm in attack.norms
    for name, defense in (("plain", Plain()), ("noisy", Noisy()))
]


@pytest.mark.parametrize(("attack", "threat", "defense"), EVERY)
def test_one_image_none_and_no_traces(some_digits, attack, threat, defense):
    model, batch = some_digits
    before = [parameter.clone() for parameter in model.parameters()]
    state, images = torch.get_rng_state(), batch.images.clone()
    for count in (1, 0):
        part = batch[:count]
        view = view_of(model, part, threat, defense, access=attack.access)
        attack.check(view, threat)
        found = attack.perturb(view, part, threat, draws_of(part)).images
        assert found.shape == part.images.shape
        assert found.dtype == torch.float32 and not found.requires_grad
        assert torch.isfinite(found).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batch.images, images)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None and torch.equal(parameter, old)


@pytest.mark.parametrize(("attack", "threat", "defense"), EVERY)
def test_epsilon_zero_changes_nothing(some_digits, attack, threat, defense):
    model, batch = some_digits
    none = ThreatModel(epsilon=0.0, norm=threat.norm)
    if not attack.bounded:
        attack = ApproximateInput(steps=3, ball="original")
    found = attacked(attack, model, batch[:3], none, defense)
    assert (norms(found - batch.images[:3], threat.norm) <= TOLERANCE).all()


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_noise_fills_the_ball_and_fools_nobody(digits, threat):
    model, batch = digits
    found = attacked(Noise(), model, batch, threat)
    distance = norms(found - batch.images, threat.norm)
    assert (distance <= threat.epsilon + TOLERANCE).all() and distance.max() > 0.8 * threat.epsilon
    assert accuracy(model, found, batch) > accuracy(model, batch.images, batch) - 0.05
    assert not torch.equal(attacked(Noise(), model, batch, threat, seed=1), found)


def test_clean_returns_the_images(some_digits):
    model, batch = some_digits
    assert torch.equal(attacked(Clean(), model, batch, LINF), batch.images)
    assert Clean().passes == 0 and Noise().passes == 0


def test_every_one_is_registered_with_a_line_about_it():
    entries = {entry.name: entry for entry in attacks}
    names = ["clean", "noise", "fgsm", "pgd", "cw", "bpda", "approximate-input", "projected-bpda"]
    names += ["spsa", "square"]
    for name, attack in zip(names, NATIVE, strict=True):
        assert type(entries[name].make()) is type(attack)
        assert 20 < len(entries[name].summary) <= 100


def test_stronger_attacks_are_stronger(digits):
    model, batch = digits
    found = [
        accuracy(model, attacked(attack, model, batch, LINF), batch)
        for attack in (Clean(), Noise(), FGSM(), PGD(steps=10))
    ]
    assert found[0] >= found[1] > found[2] >= found[3]
