from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.attacks.losses import LOSSES, against, cross_entropy, dlr, margin
from harness.types import HarnessError

LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.5, 3.0, 0.0]])
LABELS = torch.tensor([0, 2])


def test_margin_is_the_best_other_logit_minus_the_true_one():
    assert torch.equal(margin(LOGITS, LABELS), torch.tensor([-1.0, 3.0]))


def test_dlr_divides_the_margin_by_first_minus_third():
    torch.testing.assert_close(dlr(LOGITS, LABELS), torch.tensor([-1.0 / 3.0, 1.0]))


def test_cross_entropy_is_minus_the_log_probability():
    expected = -torch.log_softmax(LOGITS, 1)[torch.arange(2), LABELS]
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), expected)


@given(st.integers(0, 2**31), st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_dlr_ignores_scale_and_shift(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (4,), generator=generator)
    torch.testing.assert_close(dlr(logits * scale + shift, labels), dlr(logits, labels))


@given(st.integers(0, 2**31))
def test_margins_are_positive_exactly_where_misclassified(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 4, generator=generator)
    labels = torch.randint(4, (6,), generator=generator)
    wrong = logits.argmax(1) != labels
    assert torch.equal(margin(logits, labels) > 0, wrong)
    assert torch.equal(dlr(logits, labels) > 0, wrong)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_per_sample_and_differentiable(name):
    logits = LOGITS.clone().requires_grad_()
    values = against(name, LABELS)(logits)
    assert values.shape == (2,)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert torch.isfinite(gradient).all()
    assert (gradient[torch.arange(2), LABELS] <= 0).all() and gradient.any()


def test_dlr_refuses_two_classes():
    with pytest.raises(HarnessError, match="at least 3 classes, the model has 2: use loss=margin"):
        dlr(LOGITS[:, :2], torch.tensor([0, 1]))
