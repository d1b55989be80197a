"""Files that are damaged, foreign or made to deceive: refused or made again, never run, read or deleted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.defenses.estimation import build_cache, native

# --- the cache of compiled code -------------------------------------------------------------------


def build(path: Path) -> None:
    path.write_bytes(b"code" * 100)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return build_cache.folder()


def test_what_was_kept_is_found_and_closed_to_others(cache: Path) -> None:
    kept = build_cache.keep(cache, "lanes-1", build)
    assert build_cache.find(cache, "lanes-1") == kept
    assert kept.stat().st_mode & 0o777 == 0o700 and cache.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in cache.iterdir()] == [kept.name], "no temporary file is left"


@pytest.mark.parametrize("length", [0, 1, 399])
def test_a_truncated_library_is_deleted(length: int, cache: Path) -> None:
    kept = build_cache.keep(cache, "lanes-1", build)
    os.truncate(kept, length)
    assert build_cache.find(cache, "lanes-1") is None and not kept.exists()


def test_a_changed_library_is_deleted(cache: Path) -> None:
    kept = build_cache.keep(cache, "lanes-1", build)
    kept.write_bytes(b"evil" * 100)
    assert build_cache.find(cache, "lanes-1") is None and not kept.exists()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_library_that_others_can_write_is_deleted(mode: int, cache: Path) -> None:
    kept = build_cache.keep(cache, "lanes-1", build)
    kept.chmod(mode)
    assert build_cache.find(cache, "lanes-1") is None


def test_a_link_to_a_library_elsewhere_is_deleted_and_not_followed(
    cache: Path, tmp_path: Path
) -> None:
    kept = build_cache.keep(cache, "lanes-1", build)
    elsewhere = tmp_path / "elsewhere.so"
    kept.rename(elsewhere)
    kept.symlink_to(elsewhere)
    assert build_cache.find(cache, "lanes-1") is None and elsewhere.exists()


def test_a_library_of_another_user_is_deleted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = build_cache.keep(cache, "lanes-1", build)
    someone = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: someone)
    assert build_cache.find(cache, "lanes-1") is None and not kept.exists()


def test_a_folder_of_another_user_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    someone = os.getuid() + 1
    if os.getuid() == 0:
        os.chown(cache, someone, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: someone)
    with pytest.raises(RuntimeError, match="another user"):
        build_cache.folder()


@pytest.mark.parametrize("mode", [0o770, 0o777])
def test_an_open_folder_is_emptied_and_closed(mode: int, cache: Path) -> None:
    kept = build_cache.keep(cache, "lanes-1", build)
    cache.chmod(mode)
    assert build_cache.folder() == cache
    assert not kept.exists() and cache.stat().st_mode & 0o777 == 0o700


def test_an_open_folder_above_is_refused(cache: Path) -> None:
    cache.parent.chmod(0o777)
    with pytest.raises(RuntimeError, match="XDG_CACHE_HOME"):
        build_cache.folder()
    cache.parent.chmod(0o1777)  # sticky: nobody replaces what is another's
    assert build_cache.folder() == cache


def test_a_build_that_is_stopped_leaves_nothing(cache: Path) -> None:
    def stopped(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache.keep(cache, "lanes-1", stopped)
    assert list(cache.iterdir()) == []


def test_a_truncated_library_kills_no_run(tmp_path: Path) -> None:
    if native.library() is None:
        pytest.skip("no compiler")
    code = (
        "import torch; from harness.defenses.estimation import native, nuclear_norm\n"
        "a = torch.linspace(-1, 1, 60).view(1, 6, 10)\n"
        "assert nuclear_norm(a, a > -0.5).converged.all() and native.library() is not None\n"
        "assert native.computed_by('cpu').startswith('compiled ')"
    )

    def run() -> Path:
        command = [sys.executable, "-W", "error", "-c", code]
        subprocess.run(command, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}, check=True)
        (library,) = tmp_path.rglob("*.so")
        return library

    built = run()
    whole = built.stat().st_size
    os.truncate(built, whole // 2)
    assert run().stat().st_size == whole


def test_without_a_library_the_path_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        return None

    monkeypatch.setattr(native, "library", none)
    assert native.computed_by("cpu") == "torch"
