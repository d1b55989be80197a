"""`harness verify`: check records against the attacked images on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.options import CACHE, DATA, DEVICE, QUIET, typed
from harness.types import HarnessError


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("keys", nargs=-1)
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True, help="New draws.")
@DEVICE
@CACHE
@QUIET
@DATA
def verify(keys: tuple[str, ...], draws: int, **words: Any) -> None:
    """Rebuild records from the attacked images on disk, compare every field, and score new draws.

    Fields that no file can contradict are printed as taken on trust.

    Exit status 1 where something is contradicted, or cannot be verified.

    \b
    harness verify results/runs
    """
    from harness.audit import verify
    from harness.evaluation.runner import Runner
    from harness.executors import session

    where = typed(words, session.SessionOptions)
    if not (where.results / "records").is_dir():
        raise HarnessError(f"no records in {where.results}: `harness run` makes some")

    def work(runner: Runner) -> int:
        model_store = runner.model_store
        findings = verify.verify(model_store, keys, model_store.reporter, draws=draws)
        for finding in findings:
            line = f"{finding.status} {finding.key} {finding.title}"
            click.echo(f"{line}: {finding.summary}" if finding.summary else line)
            for reason in finding.reasons:
                click.echo(f"  {reason}")
        for trusted in sorted({each for finding in findings for each in finding.trusted}):
            click.echo(f"taken on trust: {trusted}")
        counts = [
            f"{sum(f.status == status for f in findings)} {status}"
            for status in ("verified", "contradicted", "unverifiable")
        ]
        click.echo(", ".join(counts))
        return 0 if all(finding.status == "verified" for finding in findings) else 1

    sys.exit(session.run(where, work, prepare=False))
