"""Files of the store read back as they were written, or are reported as damaged."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.results.records import Timing
from harness.storage import store
from harness.storage.store import DamagedFile, Store
from harness.targets.model_store import load_weights
from harness.types import HarnessError

TIMING = Timing(key="k", seconds=1.5, images_per_second=2.0, started="now")
TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([True, False])}
quick = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def stored(tmp_path: Path) -> Store:
    return Store(tmp_path)


def damage(content: bytes, data: st.DataObject) -> bytes:
    """One bit flipped, cut short, or made longer."""
    kind = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    if kind == "cut":
        return content[: data.draw(st.integers(0, len(content) - 1))]
    if kind == "grow":
        return content + data.draw(st.binary(min_size=1, max_size=9))
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


@given(data=st.data())
@quick
def test_damaged_json_is_never_read_as_another_value(stored: Store, data: st.DataObject) -> None:
    path = stored.write_json("timings", "k", TIMING)
    path.write_bytes(damage(path.read_bytes(), data))
    try:
        assert stored.read_json("timings", "k", Timing) == TIMING  # blanks between words
    except DamagedFile as error:
        assert error.path == path and str(path) in str(error)


@given(data=st.data())
@quick
def test_damaged_tensors_are_never_read_as_others(stored: Store, data: st.DataObject) -> None:
    path = stored.results / "t.safetensors"
    store.write_tensors(path, TENSORS, {"key": "k"})
    path.write_bytes(damage(path.read_bytes(), data))
    try:
        tensors, metadata = store.read_tensors(path)
    except DamagedFile as error:
        assert error.path == path
    else:  # a blank of the padding
        assert metadata == {"key": "k"}
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    metadata = {str(number): "x" for number in range(20)}
    for name in ("one", "two"):
        store.write_tensors(tmp_path / name, TENSORS, metadata)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("code in a checkpoint was run",))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    with pytest.raises(DamagedFile, match="a pickle, which could run code"):
        store.read_tensors(path)


def test_a_file_of_torch_save_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": Bomb()}, buffer)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DamagedFile, match="a pickle, which could run code"):
        store.read_tensors(path)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"key": "other"}, "of another training .key is k, not other"),
        ({"classes": "7"}, "of another training .classes is 10, not 7"),
        ({}, "does not fit the model"),
    ],
)
def test_weights_of_another_training_are_refused(
    tmp_path: Path, wanted: dict[str, str], reason: str
) -> None:
    path = tmp_path / "weights.safetensors"
    identity = {"key": "k", "classes": "10"}
    store.write_tensors(path, dict(torch.nn.Linear(3, 10).state_dict()), identity)
    model = torch.nn.Linear(3, 10) if wanted else torch.nn.Linear(3, 7)
    with pytest.raises(DamagedFile, match=reason):
        load_weights(model, path, {**identity, **wanted})


def test_a_record_under_another_name_is_refused(stored: Store) -> None:
    path = stored.write_json("timings", "k", TIMING)
    path.rename(path.with_name("other.json"))
    with pytest.raises(DamagedFile, match=r"was written as k\.json"):
        stored.read_json("timings", "other", Timing)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "/etc/passwd", "a\0b", "x" * 300])
def test_no_name_leads_out_of_the_folder(stored: Store, name: str) -> None:
    for words in (("records", name), (name, "x")):
        with pytest.raises(HarnessError, match="cannot name a file"):
            stored.write_json(*words, {"x": 1})
        with pytest.raises(HarnessError, match="cannot name a file"):
            stored.read_json(*words, dict)
    assert not list(stored.results.iterdir())


def test_set_aside_keeps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("x")
    aside = store.set_aside(path)
    assert not path.exists() and aside.read_text() == "x"
    assert store.set_aside(path) != aside  # already gone: no error
