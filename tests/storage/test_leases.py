"""One owner at a time; a dead owner's lease is taken over; a living one's never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.storage import leases
from harness.storage.leases import Leases
from harness.storage.store import StoreError

HOLD = """
import sys, time
from pathlib import Path
from harness.storage.leases import Leases
lease = Leases(Path(sys.argv[1])).take("work", "a note")
print("held" if lease else "refused", flush=True)
time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds `work`."""
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_one_owner_until_it_is_released(tmp_path: Path) -> None:
    one, other = Leases(tmp_path), Leases(tmp_path)
    lease = one.take("work")
    assert lease is not None
    assert other.take("work") is None
    assert one.take("work") is None
    with other.take("work.2") or pytest.fail("another name is other work"):
        assert len(one.holdings()) == 2
    lease.release()
    assert one.holdings() == []
    assert other.take("work") is not None


def test_a_killed_owner_is_followed_at_once_and_a_living_one_is_not(tmp_path: Path) -> None:
    process = holder(tmp_path)
    mine = Leases(tmp_path)
    try:
        assert mine.take("work") is None
        (seen,) = mine.holdings()
        assert seen.alive and seen.owner.process == process.pid and seen.owner.note == "a note"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [seen.alive for seen in mine.holdings()] == [False]
    taken = mine.take("work")
    assert taken is not None
    assert [seen.owner.process for seen in mine.holdings()] == [os.getpid()]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"process": "x"}', b"\xff\x00", b'{"host": "\xff"}']
)
def test_an_owner_elsewhere_is_dead_when_its_heart_stops(tmp_path: Path, content: bytes) -> None:
    """What another machine wrote, or wrote by half: its age alone says whether it lives."""
    path = tmp_path / "work.3.lease"
    path.write_bytes(content)
    mine = Leases(tmp_path, expiry=50.0)
    assert mine.take("work") is None
    os.utime(path, (time.time() - 60, time.time() - 60))
    taken = mine.take("work")
    assert taken is not None and taken.path.name == "work.4.lease"
    assert not path.exists()


def test_the_clock_is_the_file_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work.0.lease").write_text("")
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is far off
    assert Leases(tmp_path).take("work") is None


def test_the_heart_beats_and_a_loss_is_noticed(tmp_path: Path) -> None:
    lease = Leases(tmp_path, expiry=0.2).take("work")
    assert lease is not None
    os.utime(lease.path, (1.0, 1.0))
    while lease.path.stat().st_mtime == 1.0:  # hangs where nothing beats
        time.sleep(0.01)
    lease.path.unlink()
    while not lease.lost:
        time.sleep(0.01)


def test_of_many_contenders_one_wins(tmp_path: Path) -> None:
    """Each round starts with a dead lease, so that all take it over at once."""
    for round_ in range(20):
        name = f"work{round_}"
        (tmp_path / f"{name}.0.lease").write_text("")
        os.utime(tmp_path / f"{name}.0.lease", (1.0, 1.0))
        won: list[leases.Lease] = []
        start = threading.Barrier(8)

        def contend(name: str = name, start: threading.Barrier = start) -> None:
            mine = Leases(tmp_path)
            start.wait()
            lease = mine.take(name)
            if lease is not None:
                won.append(lease)  # noqa: B023

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) <= 1
        if not won:  # all went back: the next to come gets it
            assert Leases(tmp_path).take(name) is not None


def test_a_sweep_takes_the_dead_alone(tmp_path: Path) -> None:
    mine = Leases(tmp_path)
    lease = mine.take("work")
    assert lease is not None
    (tmp_path / "dead.0.lease").write_text("")
    os.utime(tmp_path / "dead.0.lease", (1.0, 1.0))
    mine.sweep()
    assert [path.name for path in tmp_path.iterdir()] == [lease.path.name]
    Leases(tmp_path / "nowhere").sweep()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        Leases(tmp_path / "file" / "leases").take("work")
