"""Divide work among processes by leases in a shared folder, without locks.

A lease is a file NAME.N.lease, created with O_EXCL, which succeeds for only one of several contenders, on
a network file system too. Its owner touches it as long as it lives. A lease that was not touched for
`expiry` seconds is dead: another process takes the work by creating number N + 1, which again succeeds for
only one. Ages are differences of two times of the file server, so the clocks of the machines need not
agree. On the owner's own machine a dead process is detected at once.

Leases only save work; correctness does not depend on them. Every file of the store is written whole and is
a function of its name, so two owners of one lease (after a machine slept and woke) write the same file twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

import msgspec

from harness.storage import log
from harness.storage.store import StoreError, files, make_folder, unwritable

EXPIRY = 60.0
SUFFIX = ".lease"


class Busy(Exception):
    """Another run holds the lease; the work may be looked at again later."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a lease.

    `machine` is empty where the system cannot tell whether a process is alive.
    """

    host: str = "unknown"
    machine: str = ""
    process: int = 0
    started: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holding:
    """A lease as seen by another process."""

    name: str
    owner: Owner
    age: float
    """Seconds since the owner touched the lease."""
    alive: bool


class Lease:
    """A lease that this process holds until it is released, or lost because it was not touched."""

    def __init__(self, leases: Leases, name: str, path: Path) -> None:
        self._leases = leases
        self.name = name
        self.path = path
        self.lost = False

    def release(self) -> None:
        self._leases._forget(self)
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Leases:
    """The leases in one folder. A process needs one object for each folder."""

    def __init__(self, folder: Path, *, expiry: float = EXPIRY) -> None:
        self.folder = folder
        self.expiry = expiry
        self._held: set[Lease] = set()
        self._lock = threading.Lock()
        self._beating: threading.Thread | None = None
        self._offset: float | None = None

    def take(self, name: str, note: str = "") -> Lease | None:
        """Return the lease, or None where a living owner holds it, or two contend for it at this moment.

        Raises:
            StoreError: the folder cannot be written.
        """
        make_folder(self.folder)
        try:
            return self._take(name, note)
        except OSError as error:
            raise unwritable(self.folder / name, error) from error

    def _take(self, name: str, note: str) -> Lease | None:
        for _ in range(3):
            seen = self._numbers(name)
            dead = {number for number in seen if not self._look(self._path(name, number)).alive}
            if seen - dead:
                return None
            number = max(seen, default=-1) + 1
            path = self._path(name, number)
            try:
                _create(path, dataclasses.replace(_myself(), note=note))
            except FileExistsError:
                return None
            # A contender that looked earlier may have chosen another number: then both give up for now.
            if self._numbers(name) - dead - {number}:
                path.unlink(missing_ok=True)
                time.sleep(random.uniform(0.01, 0.1))
                continue
            if any(self._path(name, old).exists() for old in dead):
                log.event("lease taken over", note or name)
            for old in dead:
                self._path(name, old).unlink(missing_ok=True)
            lease = Lease(self, name, path)
            with self._lock:
                self._held.add(lease)
            self._beat()
            return lease
        return None

    def holdings(self) -> list[Holding]:
        """Return all leases in the folder, dead ones too."""
        return [self._look(path) for path in files(self.folder, SUFFIX)]

    def sweep(self) -> None:
        """Delete the leases of dead owners."""
        with contextlib.suppress(OSError, StoreError):
            for path in files(self.folder, SUFFIX):
                if not self._look(path).alive:
                    path.unlink(missing_ok=True)

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}{SUFFIX}"

    def _numbers(self, name: str) -> set[int]:
        found = set()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                stem, _, number = entry.name.removesuffix(SUFFIX).rpartition(".")
                if stem == name and entry.name.endswith(SUFFIX) and number.isdecimal():
                    found.add(int(number))
        return found

    def _look(self, path: Path) -> Holding:
        name = path.name.removesuffix(SUFFIX).rpartition(".")[0]
        try:
            touched = path.stat().st_mtime
            owner = _parse(path.read_bytes())
        except FileNotFoundError:  # released since it was listed
            return Holding(name=name, owner=Owner(), age=0.0, alive=False)
        age = max(0.0, self._now() - touched)
        alive = age < self.expiry
        if alive and owner.machine and owner.machine == _machine():
            alive = bool(owner.started) and _start_of(owner.process) == owner.started
        return Holding(name=name, owner=owner, age=age, alive=alive)

    def _now(self) -> float:
        """Return the file server's time."""
        if self._offset is None:
            probe = self.folder / f".now.{secrets.token_hex(4)}"
            try:
                probe.touch()
                self._offset = probe.stat().st_mtime - time.time()
                probe.unlink(missing_ok=True)
            except OSError:  # a folder that may only be read
                self._offset = 0.0
        return time.time() + self._offset

    # --- the heartbeat ----------------------------------------------------------------------------

    def _beat(self) -> None:
        if self._beating is None or not self._beating.is_alive():
            self._beating = threading.Thread(target=self._keep_touching, daemon=True)
            self._beating.start()

    def _keep_touching(self) -> None:
        while True:
            time.sleep(self.expiry / 4)
            with self._lock:
                held = list(self._held)
            for lease in held:
                try:
                    os.utime(lease.path)
                except FileNotFoundError:
                    lease.lost = True
                except OSError:  # a hiccup of the network: the next beat may get through
                    continue

    def _forget(self, lease: Lease) -> None:
        with self._lock:
            self._held.discard(lease)


def _create(path: Path, owner: Owner) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(handle, msgspec.json.encode(owner))
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(handle)


def _parse(content: bytes) -> Owner:
    """Return the owner that a lease names; an unknown one where the file is incomplete."""
    try:
        return msgspec.json.decode(content, type=Owner)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Owner()


def _myself() -> Owner:
    process = os.getpid()
    return Owner(
        host=socket.gethostname(),
        machine=_machine(),
        process=process,
        started=_start_of(process),
    )


def _machine() -> str:
    """Return an id of this machine's boot and process namespace; empty where the system tells none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(process: int) -> str:
    """Return the start time of a process of this machine; empty where it is gone, or waits to be reaped."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]
