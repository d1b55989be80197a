"""Read, compare and restore the state of a process, apart from code, that a guest could leave changed.

Each facet is read in microseconds. A facet that still differs after it was put back is named as such: a
process in that state can be trusted with nothing more.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from harness.cells import libraries
from harness.cells.libraries import RANDOM, Facet, warm

__all__ = ["PATH", "RANDOM", "THREADS", "Facet", "read", "restore", "warm"]

PATH = "import path"
"""The facet that a user's file may change while it is loaded."""
THREADS = "running threads"
_PATIENCE = 0.2
"""Seconds that threads may take to end."""
_LIMITS = ("RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_DATA", "RLIMIT_AS", "RLIMIT_CPU")


def read() -> dict[str, Any]:
    """Return the value of each facet, by name."""
    return {name: facet.read() for name, facet in FACETS.items()}


def restore(before: Mapping[str, Any], keep: Collection[str] = ()) -> list[str]:
    """Restore all facets that differ from `before`, except those in `keep`; return their names.

    A name ends with "(it cannot be put back)" where the facet differs even then.
    """
    found = []
    for name, facet in FACETS.items():
        if name in keep or facet.read() == before[name]:
            continue
        with contextlib.suppress(Exception):
            facet.restore(before[name])
        if name in _SILENT:
            continue
        whole = facet.read() == before[name]
        if whole and name == THREADS:  # they were ending
            continue
        found.append(name if whole else f"{name} (it cannot be put back)")
    return found


# --- the process ----------------------------------------------------------------------------------


def _environment(value: dict[str, str]) -> None:
    for name in os.environ.keys() - value.keys():
        del os.environ[name]
    os.environ.update(value)


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _umask() -> int:
    value = os.umask(0o077)
    os.umask(value)
    return value


def _limits() -> dict[str, tuple[int, int]]:
    try:
        import resource
    except ImportError:  # a system without them
        return {}
    return {name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS}


def _set_limits(value: dict[str, tuple[int, int]]) -> None:
    import resource

    for name, pair in value.items():
        resource.setrlimit(getattr(resource, name), pair)


def _lists() -> dict[str, list[Any]]:
    return {name: list(getattr(sys, name)) for name in ("path", "meta_path", "path_hooks")}


def _set_lists(value: dict[str, list[Any]]) -> None:
    for name, items in value.items():
        getattr(sys, name)[:] = items


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _set_handlers(value: dict[int, Any]) -> None:
    for number, handler in value.items():
        if signal.getsignal(number) != handler and handler is not None:
            signal.signal(number, handler)


def _timers() -> list[int]:
    kinds = (
        getattr(signal, name, None) for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")
    )
    return [kind for kind in kinds if kind is not None and signal.getitimer(kind)[0] > 0]


def _set_timers(value: list[int]) -> None:
    for kind in _timers():
        if kind not in value:
            signal.setitimer(kind, 0)


def _mask() -> set[int]:
    return (
        set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        if hasattr(signal, "pthread_sigmask")
        else set()
    )


def _set_mask(value: set[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, value)


_STREAMS = ("excepthook", "unraisablehook", "displayhook", "stdout", "stderr")


def _interpreter() -> dict[str, Any]:
    return {
        "trace": sys.gettrace(),
        "profile": sys.getprofile(),
        **{name: getattr(sys, name) for name in _STREAMS},
        "threads": (threading._trace_hook, threading._profile_hook, threading.excepthook),  # type: ignore[attr-defined]
        "gc": gc.isenabled(),
        "collections": list(gc.callbacks),
        "digits": sys.get_int_max_str_digits(),
    }


def _set_interpreter(value: dict[str, Any]) -> None:
    sys.settrace(value["trace"])
    sys.setprofile(value["profile"])
    for name in _STREAMS:
        setattr(sys, name, value[name])
    trace, profile, threading.excepthook = value["threads"]
    threading.settrace(trace)
    threading.setprofile(profile)
    gc.callbacks[:] = value["collections"]
    (gc.enable if value["gc"] else gc.disable)()
    sys.set_int_max_str_digits(value["digits"])


@dataclasses.dataclass(frozen=True, eq=False)
class _Threads:
    """Python threads that somebody started, but for progress bars', which only look; and how many run that
    `threading` does not know, among them for a moment each one that ends."""

    known: frozenset[int]
    unknown: int

    def __eq__(self, before: object) -> bool:
        same = isinstance(before, _Threads) and self.known == before.known
        return same and self.unknown <= before.unknown  # type: ignore[attr-defined]


def _threads() -> _Threads:
    every = threading.enumerate()
    watched = [each for each in every if not type(each).__module__.startswith("tqdm")]
    started = len(every) - 1  # the first was there before
    return _Threads(
        frozenset(each.ident or 0 for each in watched), max(0, _thread._count() - started)
    )


def _wait_for_threads(value: _Threads) -> None:
    """Give threads that are ending the time to end."""
    until = time.monotonic() + _PATIENCE
    while _threads() != value and time.monotonic() < until:
        time.sleep(0.001)


def _filters() -> list[Any]:
    return list(warnings.filters)


def _set_filters(value: list[Any]) -> None:
    warnings.filters[:] = value  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


FACETS: Mapping[str, Facet] = {
    **libraries.FACETS,
    "environment": Facet(lambda: dict(os.environ), _environment),
    "working folder": Facet(_folder, lambda value: os.chdir(value)),
    "file mode mask": Facet(_umask, lambda value: os.umask(value)),
    "resource limits": Facet(_limits, _set_limits),
    PATH: Facet(_lists, _set_lists),
    "recursion limit": Facet(sys.getrecursionlimit, lambda value: sys.setrecursionlimit(value)),
    "interpreter's hooks": Facet(_interpreter, _set_interpreter),
    "signal handlers": Facet(_handlers, _set_handlers),
    "blocked signals": Facet(_mask, _set_mask),
    "timers": Facet(_timers, _set_timers),
    THREADS: Facet(_threads, _wait_for_threads),
    "warning filters": Facet(_filters, _set_filters),
}
"""All facets that are compared, in the order in which they are restored."""
_SILENT = {"warning filters"}
"""The facets that are restored without a report, because importing a library changes them too."""
