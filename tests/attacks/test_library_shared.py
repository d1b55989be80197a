"""Code that the bridges share: the guarded model, random state, checks of images, parameters, listing."""

from __future__ import annotations

import inspect
import random
import subprocess
import sys

import numpy
import pytest
import torch
from torch import nn

from harness.attacks.libraries.guarded import (
    ALLOWANCE,
    BudgetSpent,
    Guarded,
    in_box,
    seed_of,
    seeded,
    settle,
)
from harness.attacks.libraries.parameters import convert, parse
from harness.evaluation.judge import NOT_FINITE, OUTSIDE_BOX, check_images
from harness.registry import attacks, imported
from harness.types import Batch, HarnessError, ThreatModel

from .conftest import Noisy, Rounding, draws_of, view_of

LINF = ThreatModel(epsilon=0.1)
PACKAGES = {
    "foolbox": "foolbox.attacks",
    "torchattacks": "torchattacks",
    "art": "art.attacks.evasion",
}


def bridge(name):
    return attacks.bridges()[name]


def guarded(model, batch, access, defense=None, **options):
    view = view_of(model, batch, LINF, defense, access=access)
    return Guarded(view.module(batch, draws_of(batch)), batch.ids, access, **options), view


# The model that a library gets


def test_labels_leak_no_scores(some_digits):
    model, batch = some_digits
    guard, _ = guarded(model, batch, "labels")
    answer = guard(batch.images)
    assert torch.equal(answer.argmax(1), model(batch.images).argmax(1))
    assert answer.sum(1).eq(1).all() and answer.unique().tolist() == [0, 1]


def test_scores_come_without_gradients(some_digits):
    model, batch = some_digits
    guard, _ = guarded(model, batch, "scores")
    assert torch.equal(guard(batch.images), model(batch.images))
    with pytest.raises(HarnessError, match="asked for a gradient"):
        guard(batch.images.clone().requires_grad_())


def test_weights_are_out_of_reach(some_digits):
    model, batch = some_digits
    guard, _ = guarded(model, batch, "gradients")
    assert [tuple(p.shape) for p in guard.parameters()] == [()]
    guard.train()
    for parameter in guard.parameters():
        parameter.requires_grad_(True)
    guard(batch.images.clone().requires_grad_()).sum().backward()
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_float64_is_taken(some_digits):
    model, batch = some_digits
    guard, _ = guarded(model, batch, "gradients")
    torch.testing.assert_close(guard(batch.images.double()), model(batch.images))


def test_a_cut_graph_has_dead_gradients_and_does_not_raise(some_digits):
    class Cut(Rounding):
        backward = "exact"

        def transform(self, images, draws, auxiliary=None):
            return super().transform(images.detach(), draws)

    model, batch = some_digits
    guard, view = guarded(model, batch, "gradients", Cut())
    images = batch.images.clone().requires_grad_()
    right = guard(images).argmax(dim=1) == batch.labels
    guard(images).sum().backward()
    assert images.grad.abs().sum() == 0
    assert torch.equal(view.evidence.dead_gradients, right.long())


def test_one_leaf_asked_often_is_counted_once_each(some_digits):
    model, batch = some_digits
    guard, view = guarded(model, batch, "gradients")
    images = batch.images.clone().requires_grad_()
    for _ in range(5):
        guard(images).sum().backward()
    assert view.evidence.backwards.tolist() == [5] * len(batch)


def test_a_fooled_row_is_kept_beside_an_honest_one_of_the_same_sample(some_digits):
    model, batch = some_digits
    one = Batch(batch.images[:1], model(batch.images[:1]).argmax(1), batch.ids[:1])
    far = ThreatModel(epsilon=1.0)
    view = view_of(model, one, far, access="labels")
    view.candidates = one.images.clone()
    fooling = next(x for x in batch.images if model(x[None]).argmax() != one.labels[0])
    view.module(one, draws_of(one))(torch.stack([fooling, one.images[0]]))
    assert torch.equal(view.candidates[0], fooling)
    assert view.evidence.first_fooled.tolist() == [2]


def test_a_randomised_victim_answers_new_images_afresh_and_old_ones_alike(some_digits):
    model, batch = some_digits
    noisy = Noisy(sigma=1.0)
    fresh, _ = guarded(model, batch, "labels", noisy)
    sticky, _ = guarded(model, batch, "labels", noisy, sticky=True)
    one, two = fresh(batch.images), fresh(batch.images)
    assert not torch.equal(one, two)
    one, two = sticky(batch.images), sticky(batch.images)
    assert torch.equal(one, two)
    assert not torch.equal(one, sticky(batch.images + 1e-4))
    part = sticky.onto(nn.Identity(), batch.ids[3:5])
    part.inner = sticky.inner
    assert torch.equal(part(batch.images[3:5]), one[3:5])


def test_the_budget_ends_the_attack(some_digits):
    model, batch = some_digits
    guard, view = guarded(model, batch, "labels")
    guard.budget = 3
    with pytest.raises(BudgetSpent):
        for _ in range(9):
            guard(batch.images)
    assert view.evidence.forwards.tolist() == [3] * len(batch)


# Random state


def test_global_random_state_is_seeded_and_put_back(some_digits):
    draws = draws_of(some_digits[1])
    before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    drawn = []
    for seed in (0, 0, 1):
        with seeded(draws_of(some_digits[1], seed)):
            drawn.append((random.random(), numpy.random.rand(), torch.rand(()).item()))
    after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    assert drawn[0] == drawn[1] and not set(drawn[0]) & set(drawn[2])
    with pytest.raises(ValueError), seeded(draws):
        torch.rand(3)
        raise ValueError
    assert torch.get_rng_state().tolist() == before[2]


def test_the_seed_belongs_to_the_samples(some_digits):
    draws = draws_of(some_digits[1])
    assert 0 <= seed_of(draws) < 2**31
    assert seed_of(draws) == seed_of(draws) != seed_of(draws[:5])


# Images


def test_rounding_excess_is_projected_and_more_is_left_to_the_judge():
    images = torch.full((6, 1, 2, 2), 0.05)
    batch = Batch(images, torch.zeros(6, dtype=torch.int64), torch.arange(6))
    found = images.clone()
    found[0] += 0.1 + 0.9 * ALLOWANCE  # ball, by rounding
    found[1] += 0.1 + 2 * ALLOWANCE  # ball
    found[2] -= 0.05 + 0.9 * ALLOWANCE  # box, by rounding
    found[3] -= 0.05 + 2 * ALLOWANCE  # box
    found[4, 0, 0, 0] = torch.nan
    settled = settle(found, batch, LINF, bounded=True)
    codes = check_images(settled, images, LINF)
    assert codes.tolist() == [0, 4, 0, OUTSIDE_BOX, 0, 0]
    assert torch.equal(settled[4], images[4]) and torch.equal(settled[[1, 3]], found[[1, 3]])
    assert check_images(found, images, LINF)[4] & NOT_FINITE


def test_an_unbounded_attack_keeps_its_distance():
    images = torch.full((1, 1, 2, 2), 0.5)
    batch = Batch(images, torch.tensor([0]), torch.tensor([0]))
    found = images + 0.1 + 0.5 * ALLOWANCE
    assert torch.equal(settle(found, batch, LINF, bounded=False), found)


def test_l2_excess_is_projected():
    images = torch.full((1, 1, 2, 2), 0.5)
    batch = Batch(images, torch.tensor([0]), torch.tensor([0]))
    threat = ThreatModel(epsilon=0.2, norm="l2")
    settled = settle(images + 0.1 + 0.4 * ALLOWANCE, batch, threat, bounded=True)
    assert check_images(settled, images, threat).tolist() == [0]


def test_wrong_shapes_and_ranges_are_named():
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2), torch.arange(2))
    with pytest.raises(HarnessError, match="shape"):
        settle(torch.zeros(1, 1, 2, 2), batch, LINF, bounded=True)
    with pytest.raises(HarnessError, match=r"must be in \[0, 1\]"):
        in_box(torch.full((1, 1, 2, 2), 1.5))
    assert in_box(torch.full((1, 1, 2, 2), 1 + 1e-6)).max() == 1


# Parameters


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("None", None),
        ("3", 3),
        ("1e-3", 0.001),
        ("8/255", 8 / 255),
        ("(2, 10)", (2, 10)),
        ("adam", "adam"),
        ("1/0", "1/0"),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_text_is_parsed_and_never_evaluated(text, value):
    assert parse(text) == value


def knowing(**parameters):
    make = inspect.Parameter
    return {n: make(n, make.KEYWORD_ONLY, default=v) for n, v in parameters.items()}


def test_parameters_take_the_type_of_their_default():
    known = knowing(steps=10, rate=0.5, early=True, loss="ce", sizes=(2, 10), free=None)
    given = {
        "steps": "40",
        "rate": "1",
        "early": "no",
        "loss": "1",
        "sizes": "(3, 4)",
        "free": "2/4",
    }
    with pytest.raises(HarnessError, match="early is 'no', it must be of type bool"):
        convert("x", given, known, {})
    found = convert("x", given | {"early": "false"}, known, {})
    assert found == {
        "steps": 40, "rate": 1.0, "early": False, "loss": "1", "sizes": (3, 4), "free": 0.5,
    }  # fmt: skip
    assert type(found["rate"]) is float


def test_mistaken_parameters_are_answered():
    known = knowing(steps=10, eps=0.3)
    with pytest.raises(HarnessError, match="no parameter 'step': did you mean steps"):
        convert("lib:X", {"step": 3}, known, {})
    with pytest.raises(HarnessError, match="eps comes from the threat model"):
        convert("lib:X", {"eps": 3}, known, {"eps": "the threat model"})
    needed = {"steps": inspect.Parameter("steps", inspect.Parameter.KEYWORD_ONLY)}
    with pytest.raises(HarnessError, match="needs a value for steps"):
        convert("lib:X", {}, needed, {})


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("foolbox:LinfPGDD", {}, "did you mean foolbox:LinfPGD"),
        ("torchattacks:pgd", {}, "did you mean torchattacks:PGD"),
        ("art:ProjectedGradient", {}, "did you mean art:ProjectedGradientDescent"),
        ("foolbox:LinfPGD", {"step": "3"}, "did you mean steps"),
        ("foolbox:LinfPGD", {"steps": "many"}, "must be of type int"),
        ("torchattacks:PGD", {"eps": "0.3"}, "comes from the threat model"),
        ("art:FastGradientMethod", {"targeted": "true"}, "untargeted"),
        ("foolbox:GenAttack", {}, "targeted only"),
        ("foolbox:L1PGD", {}, "L1"),
        ("torchattacks:LGV", {}, "weights are hidden"),
        ("art:DPatch", {}, "object detectors"),
        ("art:ImperceptibleASR", {}, "speech"),
        ("art:OverTheAirFlickeringPyTorch", {}, "video"),
    ],
)
def test_what_cannot_serve_is_refused_before_it_starts(name, parameters, message):
    prefix = name.partition(":")[0]
    pytest.importorskip(prefix)
    with pytest.raises(HarnessError, match=message):
        attacks.get(name)(**parameters)


def test_a_missing_library_names_the_line_that_installs_it():
    with pytest.raises(HarnessError, match="pip install no-such-thing"):
        imported("no_such_module", "no-such-thing")


# Listing


def test_names_and_listing_import_no_library():
    code = (
        "import sys\nfrom harness.registry import attacks\nattacks.names()\n"
        "rows = [row for make in attacks.bridges().values() for row in make.listing()]\n"
        "assert len(rows) > 120, len(rows)\n"
        "for name, _, refusal in rows[:3]: attacks.get(name)\n"
        "heavy = {'foolbox', 'torchattacks', 'art', 'pyautoattack', 'eagerpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_sheets_cover_what_the_library_ships(name):
    module = pytest.importorskip(PACKAGES[name])
    bases = {
        "foolbox": lambda: module.base.Attack,
        "torchattacks": lambda: module.attack.Attack,
        "art": lambda: pytest.importorskip("art.attacks.attack").EvasionAttack,
    }
    base = bases[name]()
    shipped = {
        key
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
    }
    listed = {full.partition(":")[2] for full, _, _ in bridge(name).listing()}
    assert shipped == listed


@pytest.mark.parametrize("name", PACKAGES)
def test_every_listed_attack_is_made_or_refused_as_listed(name):
    pytest.importorskip(PACKAGES[name])
    for full, summary, refusal in bridge(name).listing():
        if refusal is not None:
            with pytest.raises(HarnessError, match="cannot serve"):
                attacks.get(full)()
        else:
            assert summary, full
            attack = attacks.get(full)()
            assert attack.access in ("gradients", "scores", "labels") and attack.norms
