"""The group of all commands, and the one place where errors become messages."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Any

import click

from harness import __version__
from harness.cli.audit import audit
from harness.cli.check import check
from harness.cli.clean import clean
from harness.cli.convergence import convergence
from harness.cli.data import data
from harness.cli.list import list_plugins
from harness.cli.new import new
from harness.cli.rank import rank
from harness.cli.reconstruct import reconstruct
from harness.cli.report import report
from harness.cli.reproduce import reproduce
from harness.cli.run import run
from harness.cli.status import status
from harness.cli.table import table
from harness.cli.verify import verify
from harness.types import HarnessError


class _Group(click.Group):
    """The group of commands, which turns errors that the user can mend into a message and an exit status."""

    def invoke(self, context: click.Context) -> Any:
        with contextlib.suppress(ValueError):  # not the main thread: signals are not ours
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return super().invoke(context)
        except HarnessError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.status)
        except KeyboardInterrupt:
            click.echo("stopped before any work", err=True)
            sys.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="harness")
def main() -> None:
    """Measure adversarial robustness so that the number can be trusted.

    \b
    harness run --defense menet-nuc --attack bpda --steps 1000
    harness run --dataset mnist --defense vanilla --defense madry --attack fgsm --attack pgd
    harness table
    """


for command in (
    audit,
    check,
    clean,
    convergence,
    data,
    list_plugins,
    new,
    rank,
    reconstruct,
    report,
    reproduce,
    run,
    status,
    table,
    verify,
):
    main.add_command(command)
