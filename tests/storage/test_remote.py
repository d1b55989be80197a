"""A store behind the folder: published whole, fetched before work, and checked on the way."""

from __future__ import annotations

import importlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from click.testing import CliRunner

from harness.cli.main import main
from harness.storage import log, remote, store
from harness.storage.remote import RemoteStore
from harness.storage.store import StoreError
from harness.types import HarnessError

KINDS = ("records", "timings", "checkpoints", "estimates", "progress")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3-compatible server of our own."""
    for needed in ("moto", "s3fs", "flask"):
        pytest.importorskip(needed, reason="pip install 'moto[server]' s3fs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with open(tmp_path_factory.mktemp("s3") / "log", "wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output)
        address = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None, "the S3 server did not start"
            try:
                urllib.request.urlopen(address).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield address
        process.kill()
        process.wait()


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place on an object store, and as a folder."""
    if request.param == "file":
        return (tmp_path / "object store").as_uri()
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_server"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    system = fsspec.filesystem("s3")
    if not system.exists("bucket"):
        system.mkdir("bucket")
    return f"s3://bucket/{tmp_path.name}"


def objects(url: str) -> dict[str, bytes]:
    """All that is there, by its name below the URL."""
    system, root = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    found = system.find(root) if system.exists(root) else []
    return {path.removeprefix(root).lstrip("/"): system.cat_file(path) for path in found}


def put(url: str, name: str, content: bytes) -> None:
    system, root = fsspec.core.url_to_fs(url)
    system.pipe_file(f"{root}/{name}", content)


def bytes_of(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def run(
    matrix: list[str], folder: Path, url: str, *more: str
) -> tuple[int, str, list[dict[str, Any]]]:
    """(exit status, output, what was done) of a run on a folder and a store."""
    path = folder.with_suffix(".jsonl")
    words = [
        *matrix,
        "--quiet",
        "--results",
        str(folder),
        "--store",
        url,
        "--log",
        str(path),
        *more,
    ]
    done = CliRunner().invoke(main, words)
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return done.exit_code, done.output, events


def published(reference: Path, folder: Path, url: str, *, without: tuple[str, ...] = ()) -> None:
    """A copy of the reference, without some of its files, put on the store."""
    shutil.copytree(reference, folder)
    for pattern in without:
        for path in folder.glob(pattern):
            path.unlink()
    RemoteStore(folder, None, url).publish()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_two_folders_that_share_a_store_do_nothing_twice(
    matrix: list[str], reference: Path, tmp_path: Path, url: str
) -> None:
    status, output, events = run(matrix, tmp_path / "one", url)
    assert status == 0, output
    assert sum(event["event"] == "batch done" for event in events) == 16
    there = objects(url)
    assert {name.split("/")[0] for name in there} == set(KINDS)  # scores and states have served
    status, output, events = run(matrix, tmp_path / "two", url)
    assert (status, events) == (0, []), output
    for folder in (tmp_path / "one", tmp_path / "two"):
        # The commit may change while the tests run: the folders agree, and the reference's names.
        assert bytes_of(folder, "records/*") == bytes_of(tmp_path / "one", "records/*")
        assert bytes_of(folder, "records/*").keys() == bytes_of(reference, "records/*").keys()
    assert bytes_of(tmp_path / "two", "timings/*") == bytes_of(tmp_path / "one", "timings/*")
    assert objects(url) == there


def test_another_machine_goes_on_where_one_stopped(
    matrix: list[str], reference: Path, tmp_path: Path, url: str
) -> None:
    """All but the records and two batches was published."""
    keys = sorted(path.name for path in (reference / "progress").iterdir())
    gone = (f"progress/{keys[0]}/00000004-4.safetensors", f"progress/{keys[2]}/00000012-*")
    published(reference, tmp_path / "one", url, without=("records/*", "timings/*", *gone))
    status, output, events = run(matrix, tmp_path / "two", url)
    assert status == 0, output
    assert sorted(event["batch"] for event in events if event["event"] == "batch done") == [
        "12",
        "4",
    ]
    assert not [event for event in events if event["event"].startswith("training")]
    names = {name for name in objects(url) if name.startswith("records/")}
    assert names == {f"records/{path.name}" for path in (reference / "records").iterdir()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["flipped", "cut short", "another's"])
def test_a_damaged_object_is_named_set_aside_and_not_taken(
    reference: Path, tmp_path: Path, kind: str, damage: str
) -> None:
    url = (tmp_path / "there").as_uri()
    published(reference, tmp_path / "one", url)
    suffix = {"estimates": ".bytes", "checkpoints": ".safetensors"}.get(kind, "")
    names = [name for name in objects(url) if name.startswith(kind) and name.endswith(suffix)]
    name, other = names[0], names[-1]
    content = bytearray(objects(url)[name])
    if damage == "flipped":
        content[len(content) // 2] ^= 4
    elif damage == "cut short":
        del content[-9:]
    else:
        content = bytearray(objects(url)[other])
    put(url, name, bytes(content))
    fresh = RemoteStore(tmp_path / "two", None, url)
    noticed: list[str] = []
    fresh.noticed = noticed.append
    part, key = name.split("/")[:2]
    stem = key.partition(".")[0]
    ask = {
        "checkpoints": lambda: fresh.checkpoint_path(stem),
        "estimates": lambda: fresh.estimates_path(stem),
        "progress": lambda: fresh.progress_folder(key) / name.split("/")[2],
    }
    path = ask.get(kind, lambda: fresh.has(part, stem) or fresh.json_path(part, stem))()
    assert not path.exists()
    (line,) = noticed
    assert line.startswith(f"{url}/{name} is damaged: ")
    assert [found for found in objects(url) if found.startswith(f"{name}.damaged-")]
    assert name not in objects(url)
    # Whoever has it whole puts it back.
    RemoteStore(tmp_path / "one", None, url).publish()
    assert objects(url)[name] == (tmp_path / "one" / name).read_bytes()


def test_a_run_that_meets_damage_makes_it_again_and_says_so(
    matrix: list[str], reference: Path, tmp_path: Path, url: str
) -> None:
    published(reference, tmp_path / "one", url, without=("records/*",))
    name = min(name for name in objects(url) if name.startswith("progress/"))
    content = objects(url)[name]
    put(url, name, content[:-1] + bytes([content[-1] ^ 1]))
    status, output, events = run(matrix, tmp_path / "two", url)
    assert status == 1
    assert f"damaged: {url}/{name} is damaged: " in output
    assert [event["batch"] for event in events if event["event"] == "batch done"] == ["0"]
    made, _ = store.read_tensors(tmp_path / "two" / name)
    wanted, _ = store.read_tensors(reference / name)
    assert all(torch.equal(made[part], wanted[part]) for part in wanted)
    assert objects(url)[name] == (tmp_path / "two" / name).read_bytes()


def test_what_is_damaged_in_the_folder_is_not_published(reference: Path, tmp_path: Path) -> None:
    url = (tmp_path / "there").as_uri()
    shutil.copytree(reference, tmp_path / "one")
    path = min((tmp_path / "one" / "records").iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    RemoteStore(tmp_path / "one", None, url).publish()
    names = {name for name in objects(url) if name.startswith("records/")}
    assert len(names) == 3 and f"records/{path.name}" not in names


def test_the_state_of_a_training_moves_on_and_goes_with_the_weights(
    tmp_path: Path, url: str
) -> None:
    one, two = (RemoteStore(tmp_path / name, None, url) for name in ("one", "two"))
    one.prepare()
    state = one.checkpoint_path("key").with_suffix(".state")
    for position in ("1", "2"):
        store.write_tensors(state, {}, {"training": "key", "position": position})
        one.publish()
    moved = two.checkpoint_path("key").with_suffix(".state")
    assert store.read_tensors(moved)[1]["position"] == "2"
    store.write_tensors(one.checkpoint_path("key"), {}, {"key": "key"})
    state.unlink()
    one.publish()
    assert set(objects(url)) == {"checkpoints/key.safetensors"}


def test_scores_are_published_while_they_serve(tmp_path: Path, url: str) -> None:
    one, two = (RemoteStore(tmp_path / name, None, url) for name in ("one", "two"))
    one.prepare()
    path = one.scores_folder("key") / "00000000-4.safetensors"
    path.parent.mkdir(parents=True)
    store.write_tensors(path, {"right": torch.ones(4)}, {"cell": "key"})
    one.publish()
    assert (two.scores_folder("key") / path.name).read_bytes() == path.read_bytes()
    one.write_json("records", "key", {"key": "key"})
    shutil.rmtree(path.parent)
    one.publish()
    assert set(objects(url)) == {"records/key.json"}


def test_it_publishes_under_way_and_not_at_the_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "EVERY", 0.01)
    url = (tmp_path / "there").as_uri()
    one = RemoteStore(tmp_path / "one", None, url)
    with one.publishing():
        one.write_json("records", "key", {"key": "key"})
        while "records/key.json" not in objects(url):  # hangs where nothing comes
            time.sleep(0.01)


def test_temporaries_leases_and_failures_stay_at_home(tmp_path: Path) -> None:
    url = (tmp_path / "there").as_uri()
    one = RemoteStore(tmp_path / "one", None, url)
    one.write_json("failures", "key", {"key": "key"})
    for name in ("records/.half.json", "leases/work.0.lease", "estimates/key.partial"):
        path = tmp_path / "one" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{}")
    one.publish()
    assert objects(url) == {}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("results", "s3://bucket/prefix"),
        ("s4://bucket", "Protocol not known"),
    ],
)
def test_urls_that_are_refused(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(HarnessError, match=words):
        remote.opened(tmp_path, None, url)


def test_a_missing_library_is_told_with_its_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3", raising=False)  # as in a new process
    with pytest.raises(HarnessError, match=r"pip install 'robustness-harness\[s3\]'"):
        remote.opened(tmp_path, None, "s3://bucket/prefix")


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_bucket_that_is_not_there_is_found_before_any_work(tmp_path: Path, url: str) -> None:
    distant = RemoteStore(tmp_path, None, "s3://not-there/prefix")
    with pytest.raises(StoreError, match=r"cannot reach .* of s3://not-there/prefix"):
        distant.prepare()


def test_no_store_is_an_ordinary_one(tmp_path: Path) -> None:
    assert type(remote.opened(tmp_path, None, None)) is store.Store
    with store.Store(tmp_path).publishing(), log.to(None):
        pass


def test_a_path_downloads_nothing_and_a_question_does(tmp_path: Path) -> None:
    url = (tmp_path / "there").as_uri()
    one, two = (RemoteStore(tmp_path / name, None, url) for name in ("one", "two"))
    for folder in ("records", "timings"):
        one.write_json(folder, "key", {"key": "key"})
    one.publish()
    two.prepare()
    assert not two.json_path("records", "key").exists()
    assert not (tmp_path / "two" / "records").exists()
    assert two.has("records", "key") and two.json_path("timings", "key").exists()
    assert not two.has("records", "other") and not two.has("failures", "key")
    assert two.read_json("records", "key", dict[str, str]) == {"key": "key"}


def test_a_folder_alone_answers_as_a_mirrored_one(tmp_path: Path) -> None:
    alone = store.Store(tmp_path)
    alone.refresh()
    assert alone.url is None and not alone.has("records", "key")
    with alone.publishing():
        alone.write_json("records", "key", {"key": "key"})
    assert alone.has("records", "key")
