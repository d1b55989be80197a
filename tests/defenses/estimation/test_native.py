"""The lanes against torch: the same results in any batch, and the fallback without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.defenses.estimation import conjugate, native, nuclear_norm, soft_impute
from harness.defenses.estimation.inputs import prepare
from harness.defenses.estimation.solver import descend


@pytest.fixture(autouse=True, scope="module")
def path() -> None:
    """Stand in for the directory's fixture: each test here says which path it is about."""


compiled = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")
"""Marks what is about the lanes alone. Company, threads and the lack of a compiler are tried without them."""


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


def low_rank(seed: int, count: int, height: int, width: int) -> Tensor:
    return (noise(seed, count, height, 3) @ noise(seed + 1, count, 3, width)).clamp(-1, 1)


def hard(side: int) -> Tensor:
    """Symmetric matrices that trip eigenvalue iterations: (n, side, side) float64."""
    eye = torch.eye(side, dtype=torch.float64)
    random = noise(1, side, side)
    graded = torch.logspace(0, -12, side, dtype=torch.float64)
    rotation = torch.linalg.qr(random).Q
    off = torch.diag(torch.ones(side - 1, dtype=torch.float64), 1)
    two = rotation @ torch.diag(torch.where(graded > 1e-6, 2.0, -1.0).double()) @ rotation.T
    return torch.stack(
        (
            0 * eye,
            eye,
            -eye,
            random + random.T,
            random @ random.T,
            torch.outer(random[0], random[0]),
            torch.outer(graded, graded),
            rotation @ torch.diag(graded) @ rotation.T,
            two,
            2 * eye - off - off.T,
            torch.diag(graded.flip(0)),
            1e-18 * (random + random.T),
            1e18 * (random @ random.T),
            torch.ones_like(eye),
            eye + 1e-9 * (random + random.T),
            torch.block_diag(random[:1, :1], (random + random.T)[1:, 1:]),
        )
    )


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 17, 28, 32, 63])
def test_eigenvalues_and_vectors(side: int, dtype: torch.dtype) -> None:
    matrices = hard(side).to(dtype)
    found = native.eigh(matrices)
    assert found is not None
    values, vectors = found
    near = 60 * torch.finfo(dtype).eps
    scale = torch.linalg.matrix_norm(matrices).clamp_min(1e-30)
    expected = torch.linalg.eigvalsh(matrices.double())
    assert (values.diff(dim=1) >= 0).all()
    assert ((values.double() - expected).abs() <= near * scale[:, None]).all()
    rebuilt = (vectors * values[:, None]) @ vectors.mT
    assert ((rebuilt - matrices).abs().amax((1, 2)) <= near * scale).all()
    identity = torch.eye(side, dtype=dtype)
    assert ((vectors.mT @ vectors - identity).abs() <= near).all()


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 5), (8, 8), (17, 40), (28, 28), (33, 64)])
def test_steps_are_those_of_torch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    observed = torch.cat((noise(0, 5, *shape), low_rank(1, 14, *shape))).to(dtype)
    problems = prepare(4 * observed, noise(2, *observed.shape) < 0.3)
    close = 1e-9 if dtype == torch.float64 else 2e-3
    for start in (None, low_rank(3, 19, *shape).to(dtype)):
        for steps in (1, 2, 3, 4, 5, 9):
            theirs = conjugate.descend(problems, start, gap=1e-5, max_iterations=steps)
            ours = descend(problems, start, gap=1e-5, max_iterations=steps)
            torch.testing.assert_close(ours.value, theirs.value, rtol=0, atol=close)
            torch.testing.assert_close(ours.gap, theirs.gap, rtol=0, atol=close)
            if dtype == torch.float64:
                assert ours.iterations.equal(theirs.iterations)
                assert ours.converged.equal(theirs.converged)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    count=st.integers(1, 40),
    p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    mu=st.sampled_from([1e-2, 1.0, 50.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_company_changes_no_bit(
    height: int, width: int, count: int, p: float, mu: float, dtype: torch.dtype, seed: int
) -> None:
    observed = noise(seed, count, height, width, dtype=dtype)
    observed[::2] = low_rank(seed, count, height, width)[::2].to(dtype)
    mask = noise(seed + 2, *observed.shape) < 2 * p - 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    some = order[: max(1, count // 3)]
    for solver in (nuclear_norm, lambda a, m, mu: soft_impute(a, m, shrinkage=mu / 3)):
        together = solver(observed, mask, mu=mu)
        apart = solver(observed[some], mask[some], mu=mu)
        for ours, theirs in zip(apart, together, strict=True):
            assert ours.equal(theirs[some])
        assert torch.isfinite(together.value).all()


def test_threads_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = low_rank(0, 100, 12, 20)
    mask = noise(1, *observed.shape) < 0
    alone = nuclear_norm(observed, mask)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert nuclear_norm(observed, mask).value.equal(alone.value)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"CXX": "no-such-compiler"}, "no-such-compiler"),
        ({"CXX": f"{sys.executable} -c raise(SystemExit(1))"}, "failed on lanes.cpp"),
        ({"CXX": "", "PATH": ""}, "no C++ compiler was found"),
        ({"HARNESS_NATIVE": "0", "CXX": "no-such-compiler"}, ""),
    ],
)
def test_without_a_compiler(changed: dict[str, str], says: str, tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from harness.defenses.estimation import native, nuclear_norm\n"
        "a = torch.linspace(-1, 1, 60).view(1, 6, 10)\n"
        "assert nuclear_norm(a, a > -0.5).converged.all() and native.library() is None"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **changed},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("slower path") == bool(says) and says in done.stderr
    assert not list(tmp_path.rglob("*.so"))


@compiled
def test_it_is_built_once_and_into_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build = native.library.__wrapped__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build() is not None
        (made,) = [p for p in tmp_path.rglob("*") if p.is_file()]
        first = made.stat().st_mtime_ns
        assert build() is not None and made.stat().st_mtime_ns == first
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with pytest.warns(RuntimeWarning, match="slower path"):
        assert build() is None
