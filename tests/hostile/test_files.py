"""Files that are damaged, foreign or made to deceive: refused or made again, never run, read or deleted."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.defenses.estimation import build_cache, native
from harness.models import exported
from harness.models.own import read_weights
from harness.types import HarnessError

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


# --- programs and weights -------------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return open, (str(self.place), "w")


class Small(nn.Module):
    """Two layers, a buffer, a part without gradients, and a size that is computed."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 3)
        self.register_buffer("mean", torch.tensor(0.1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            shift = self.mean * 2
        seen: torch.Tensor = self.layer(images - shift).relu()
        return seen.reshape(images.shape[0] * 3, -1).mean(dim=1).reshape(-1, 3)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "small.pt2"
    batch = torch.export.Dim("batch")
    images = (torch.rand(4, 1, 8, 8),)
    made = torch.export.export(Small().eval(), images, dynamic_shapes=({0: batch},))
    torch.export.save(made, path)
    return path


def altered(program: Path, place: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """A copy of a program, its members by their name without the first folder changed."""
    with zipfile.ZipFile(program) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).partition("/")[0]
    inside = {name.removeprefix(f"{root}/"): content for name, content in members.items()}
    change(inside)
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in inside.items():
            archive.writestr(f"{root}/{name}", content)
    return place


def in_graph(old: str, new: str) -> Callable[[dict[str, bytes]], object]:
    """Replace text in the graph of a program."""

    def change(members: dict[str, bytes]) -> None:
        before = members["models/model.json"].decode()
        assert old in before
        members["models/model.json"] = before.replace(old, new).encode()

    return change


def in_config(kind: str, **facts: Any) -> Callable[[dict[str, bytes]], object]:
    """Change what is said of every tensor of a program."""

    def change(members: dict[str, bytes]) -> None:
        name = f"data/{kind}/model_{kind}_config.json"
        config = json.loads(members[name])
        for entry in config["config"].values():
            entry.update(facts)
        members[name] = json.dumps(config).encode()

    return change


def test_an_honest_program_loads(program: Path, tmp_path: Path) -> None:
    images = torch.rand(5, 1, 8, 8)
    load: Any = torch.export.load
    expected = load(program).module()(images)
    assert torch.equal(exported.load(program)(images), expected)
    copied = altered(program, tmp_path / "copy.pt2", lambda members: None)
    assert torch.equal(exported.load(copied)(images), expected)


SIZE = "Symbol('s"
RUNS: dict[str, Callable[[Path], Callable[[dict[str, bytes]], object]]] = {
    "a size that calls": lambda made: in_graph(SIZE, f"open('{made}','w') and Symbol('s"),
    "a size with an attribute": lambda made: in_graph(SIZE, "Symbol.mro() and Symbol('s"),
    "a size with a lambda": lambda made: in_graph(SIZE, "(lambda: 1)() and Symbol('s"),
    "a size that sympy evaluates": lambda made: in_graph(SIZE, "sympify('1') and Symbol('s"),
    "an operator of torch that is no tensor function": lambda made: in_graph(
        "torch.ops.aten.relu.default", "torch.hub.load"
    ),
    "an operator that opens files": lambda made: in_graph(
        "torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"
    ),
    "an operator of an extension": lambda made: in_graph("torch.ops.aten.relu.default", "#evil:x"),
    "an attribute getter": lambda made: in_graph(
        "torch.ops.aten.relu.default", "_operator.attrgetter"
    ),
    "a name that is code": lambda made: in_graph('"images"', f"\"images=open('{made}','w')\""),
    "a name of two lines": lambda made: in_graph('"images"', '"images\\nimport os"'),
    "a tree with a factory": lambda made: in_graph("builtins.tuple", "collections.defaultdict"),
    "a tree with an enumeration": lambda made: in_graph(
        '\\"context\\": \\"null\\"', '\\"context\\": \\"{}\\"'
    ),
    "weights as pickles": lambda made: in_config("weights", use_pickle=True),
    "weights from elsewhere": lambda made: in_config("weights", path_name="../../secret"),
}


@pytest.mark.parametrize("how", RUNS)
def test_a_program_that_could_run_code_is_refused(how: str, program: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    bad = altered(program, tmp_path / "bad.pt2", RUNS[how](made))
    with pytest.raises(HarnessError, match="could run code"):
        exported.load(bad)
    assert not made.exists()


MEMBERS = (
    "data/sample_inputs/model.pt",
    "data/weights/model.pt",
    "data/constants/model.pt",
    "data/constants/opaque_obj_0",
    "data/constants/custom_obj_0",
    "data/aotinductor/model/model.so",
    "extra/readme.txt",
    "serialized_state_dict.pt",
    "serialized_example_inputs.pt",
)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("member", MEMBERS)
def test_a_pickle_in_a_program_is_refused_before_it_runs(
    member: str, protocol: int, program: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    bomb = pickle.dumps(Bomb(made), protocol=protocol)
    bad = altered(program, tmp_path / "bad.pt2", lambda members: members.update({member: bomb}))
    with pytest.raises(HarnessError, match="could run code"):
        exported.load(bad)
    assert not made.exists()


def test_a_torch_file_in_a_program_is_refused_before_it_runs(program: Path, tmp_path: Path) -> None:
    made, buffer = tmp_path / "made", io.BytesIO()
    torch.save((Bomb(made),), buffer)
    change = {"data/sample_inputs/model.pt": buffer.getvalue()}
    bad = altered(program, tmp_path / "bad.pt2", lambda members: members.update(change))
    with pytest.raises(HarnessError, match="could run code"):
        exported.load(bad)
    assert not made.exists()


def test_two_members_of_one_name_are_refused(program: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(program.read_bytes())
    with zipfile.ZipFile(bad, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"other")
    with pytest.raises(HarnessError, match="two members"):
        exported.load(bad)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x04N.", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_program_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt2"
    path.write_bytes(content)
    with pytest.raises(HarnessError, match=r"no program of torch\.export"):
        exported.load(path)


def test_a_scripted_module_is_no_exported_program(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt2"
    trace: Any = torch.jit.trace
    torch.jit.save(trace(Small().eval(), torch.rand(2, 1, 8, 8)), path)
    with pytest.raises(HarnessError, match="could run code"):
        exported.load(path)
    with pytest.raises(HarnessError, match="without running code"):
        read_weights(path.rename(tmp_path / "scripted.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "inside"])
def test_weights_that_are_a_pickle_are_refused_before_it_runs(
    suffix: str, form: str, tmp_path: Path
) -> None:
    made, path = tmp_path / "made", tmp_path / f"weights{suffix}"
    bomb: Any = {"layer.weight": torch.zeros(2), "evil": Bomb(made)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    elif form == "inside":
        torch.save({"state_dict": bomb}, path)
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(HarnessError, match="without running code"):
        read_weights(path)
    assert not made.exists()
