"""Run a command in a child process: whatever a guest's code does to it, the command ends with a message."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import click

from harness.types import HarnessError


def shielded(what: str, work: Callable[[], int]) -> int:
    """Do some work in a forked child, and return its exit status.

    Where a guest's code ended the child, whatever status it gave, the status is 2 and a line says so.
    """
    reader, writer = os.pipe()
    printed, printer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(reader)
        os.close(printed)
        _work(work, writer, printer)
    os.close(writer)
    os.close(printer)

    def forward(number: int, frame: object) -> None:
        os.kill(child, signal.SIGTERM)

    ignored = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends it to the child as well
    before = signal.signal(signal.SIGTERM, forward)
    try:
        with open(printed, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                click.echo(line, nl=False)
        _, word = os.waitpid(child, 0)
    finally:
        signal.signal(signal.SIGINT, ignored)
        signal.signal(signal.SIGTERM, before)
    with os.fdopen(reader, "rb") as pipe:
        ended = pipe.read()
    if ended:
        return int(ended)
    status = os.waitstatus_to_exitcode(word)
    end = f"signal {-status}" if status < 0 else f"exit status {status}"
    click.echo(
        f"error: {what} was ended from within, with {end}: a plugin's code does that", err=True
    )
    return 2


def _work(work: Callable[[], int], writer: int, printer: int) -> NoReturn:
    status = 1
    try:
        sys.stdout = open(printer, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        try:
            status = work()
        except HarnessError as error:
            click.echo(f"error: {error}", err=True)
            status = error.status
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(writer, str(status).encode())
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
