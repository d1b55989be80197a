"""The command line. Thin: it turns words into cells and prints what comes back."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

import click

from harness import __version__
from harness.cli import evidence, own, show
from harness.cli.options import (
    ASSIGNMENT,
    DATA,
    NORMALISATION,
    NUMBER,
    PRECISION,
    RESULTS,
    STRICT,
    WEIGHTS,
    scale_options,
)
from harness.types import HarnessError


class _Group(click.Group):
    """One place where errors that the user can mend become one message and an exit status."""

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
    """Adversarial robustness, measured so that the number can be trusted.

    \b
    harness run --defense menet-nuc --attack bpda --steps 1000
    harness run --dataset mnist --defense vanilla --defense madry --attack fgsm --attack pgd
    harness table
    """


@main.command()
@click.option("--dataset", default="digits", show_default=True)
@click.option(
    "--defense", "defenses", multiple=True, default=["vanilla"], help="Repeat. Default: vanilla."
)
@click.option("--attack", "attacks", multiple=True, required=True, help="Repeat for a matrix.")
@click.option(
    "--model", help="Classifier. Default: the dataset's. Your own: my.py:build, timm:NAME."
)
@WEIGHTS
@NORMALISATION
@click.option("--training", type=click.Choice(["pure", "adversarial"]), default="pure")
@click.option("--epochs", type=click.IntRange(1), help="Compresses the training schedule.")
@click.option("--epsilon", type=NUMBER, help="Radius of the ball: 0.3, 8/255.")
@click.option("--norm", type=click.Choice(["linf", "l2"]), default="linf", show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Attack steps.")
@click.option("--step-size", type=NUMBER, help="Default: the dataset's, 0.01 or 2/255.")
@click.option("--eot", type=click.IntRange(1), help="Draws that a step's gradient averages.")
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=[0], show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many test images.")
@click.option("--max-queries", type=click.IntRange(1), help="Forwards an image may cost.")
@click.option("--budget-scale", type=NUMBER, help="Share of the adaptive suite's budget: 0.1.")
@STRICT
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1. Default: cuda where there is one.")
@PRECISION
@click.option("-A", "attack_options", type=ASSIGNMENT, multiple=True, help="Attack's field.")
@click.option("-D", "defense_options", type=ASSIGNMENT, multiple=True, help="Defense's field.")
@click.option("-M", "model_options", type=ASSIGNMENT, multiple=True, help="Model's field.")
@click.option("-T", "training_options", type=ASSIGNMENT, multiple=True, help="Training's field.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of weights and estimates.")
@click.option("--quiet", is_flag=True, help="No progress.")
@scale_options
@RESULTS
@DATA
def run(**words: Any) -> None:
    """Train or load each defense, run each attack, print a table.

    The same command again runs only what is missing.

    \b
    harness run --dataset mnist --defense madry --attack pgd --steps 40 --limit 1000
    """
    from harness.cli import engine

    sys.exit(engine.run(**words))


@main.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--profile", default="smoke", show_default=True, help="smoke, laptop, gpu, paper.")
@click.option("--dry-run", is_flag=True, help="List cells and estimate time and memory.")
@click.option("--render", is_flag=True, help="Only draw tables and figures from the records.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1. Default: cuda where there is one.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of weights and estimates.")
@click.option("--quiet", is_flag=True, help="No progress.")
@scale_options
@click.option("--results", type=click.Path(path_type=Path), help="Default: results/runs/PROFILE.")
@DATA
def reproduce(**words: Any) -> None:
    """Run what a table or figure of the paper still needs, and draw it.

    NAMES are table1 to table7, figure1, figure2, figure4 to figure6, beyond, refuted, `all`, or
    TOML files of your own. What is stored already is not run again.

    \b
    harness reproduce table4 --profile laptop
    harness reproduce all --profile smoke
    harness reproduce all --profile gpu --dry-run
    """
    if words["render"]:
        from harness.paper.render import command
    else:
        from harness.paper.reproduce import command
    sys.exit(command(**words))


@main.command(name="list")
@click.argument("kind", required=False)
@click.option("--all", "everything", is_flag=True, help="With what the attack libraries ship.")
def list_(kind: str | None, everything: bool) -> None:
    """All attacks, defenses, models, datasets and estimators, one line each.

    \b
    harness list attacks --all
    """
    from harness.cli import commands

    commands.list_plugins(kind, everything=everything)


for module in (evidence, own, show):
    for command in vars(module).values():
        if isinstance(command, click.Command):
            main.add_command(command)


@main.group()
def data() -> None:
    """Look at datasets."""


@data.command(name="check")
@click.argument("name")
@DATA
def data_check(name: str, data_dir: Path | None) -> None:
    """Counts, digest, shape and range of a dataset.

    \b
    harness data check mnist --data-dir ~/data
    """
    from harness.datasets.data import summary
    from harness.storage.progress import reporter

    for split in summary(name, data_dir, reporter=reporter()):
        channels, height, width = split.shape
        click.echo(f"{split.name} ({split.split}): {split.count:,} images")
        click.echo(f"  shape   {channels} x {height} x {width}, {split.dtype}")
        click.echo(f"  range   {split.low:.3g} to {split.high:.3g} on a scale of [0, 1]")
        counts = ", ".join(f"{label}: {count}" for label, count in split.per_class.items())
        click.echo(f"  classes {counts}")
        click.echo(f"  in both splits: {split.repeated}")
        click.echo(f"  digest  {split.digest}")
        if split.note:
            click.echo(f"  note    {split.note}")
