"""Every test of estimation runs on both paths: through torch, and in lanes where those are built."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.defenses.estimation import native


@pytest.fixture(params=["lanes", "torch"], autouse=True, scope="module")
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(native, "serves", lambda matrix: False)
        elif native.library() is None:
            pytest.skip("no C++ compiler here")
        yield request.param
