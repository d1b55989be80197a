"""The command line. Thin: it turns words into cells and prints what comes back."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from harness import __version__, cli_own
from harness.memory import size
from harness.types import HarnessError, number


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


class _Number(click.ParamType[float]):
    name = "number"

    def convert(self, value: Any, param: Any, context: Any) -> float:
        if isinstance(value, float):
            return value
        try:
            return number(value)
        except HarnessError as error:
            self.fail(str(error), param, context)


class _Memory(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: Any, context: Any) -> int:
        if isinstance(value, int):
            return value
        try:
            return size(value)
        except HarnessError as error:
            self.fail(str(error), param, context)


class _Assignment(click.ParamType[tuple[str, str]]):
    name = "key=value"

    def convert(self, value: Any, param: Any, context: Any) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not of the form key=value", param, context)
        return key.strip().replace("-", "_"), text.strip()


NUMBER, ASSIGNMENT, MEMORY = _Number(), _Assignment(), _Memory()
_RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results/runs"),
    show_default=True,
    help="Folder of records, and of all else unless --cache says otherwise.",
)
_DATA = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder with the datasets' files. Default: HARNESS_DATA, else a cache folder of yours.",
)


_STRICT = click.option(
    "--strict", is_flag=True, help="Exit status 3 where a number is flagged (but for scaled-down)."
)


def _scale_options(command: Callable[..., None]) -> Callable[..., None]:
    """How much of the machine a run may use."""
    for option in (
        click.option(
            "--memory", type=MEMORY, help="Halve batches at this limit: 4GB (GPU's, if used)."
        ),
        click.option(
            "--workers", type=click.IntRange(1, 512), help="Processes that share the work."
        ),
        click.option("--devices", help="A process for each GPU: 0,1,2,3."),
    ):
        command = option(command)
    return command


def _target_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that name one defended model, its ball, and where it is made."""
    path = click.Path(path_type=Path)
    for option in reversed(
        (
            click.option("--dataset", default="digits", show_default=True),
            click.option("--defense", required=True),
            click.option("--model", help="Classifier. Default: the dataset's."),
            click.option("--training", type=click.Choice(["pure", "adversarial"]), default="pure"),
            click.option("--epochs", type=click.IntRange(1), help="Compresses the schedule."),
            click.option("--epsilon", type=NUMBER, help="Radius of the ball: 0.3, 8/255."),
            click.option("--norm", type=click.Choice(["linf", "l2"]), default="linf"),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("-D", "defense_options", type=ASSIGNMENT, multiple=True),
            click.option("-T", "training_options", type=ASSIGNMENT, multiple=True),
            click.option("--device", help="Default: cuda where there is one."),
            click.option("--cache", type=path, help="Folder of weights and estimates."),
            click.option("--quiet", is_flag=True, help="No progress."),
        )
    ):
        command = option(command)
    return command


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
@click.option("--weights", help="Of your own model, instead of training: FILE, or `pretrained`.")
@click.option(
    "--normalisation", help="Of your own model: inside (default), imagenet, cifar10, MEAN/STD."
)
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
@_STRICT
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1. Default: cuda where there is one.")
@click.option("-A", "attack_options", type=ASSIGNMENT, multiple=True, help="Attack's field.")
@click.option("-D", "defense_options", type=ASSIGNMENT, multiple=True, help="Defense's field.")
@click.option("-M", "model_options", type=ASSIGNMENT, multiple=True, help="Model's field.")
@click.option("-T", "training_options", type=ASSIGNMENT, multiple=True, help="Training's field.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of weights and estimates.")
@click.option("--quiet", is_flag=True, help="No progress.")
@_scale_options
@_RESULTS
@_DATA
def run(**words: Any) -> None:
    """Train or load each defense, run each attack, print a table.

    The same command again runs only what is missing.

    \b
    harness run --dataset mnist --defense madry --attack pgd --steps 40 --limit 1000
    """
    from harness import engine

    sys.exit(engine.run(**words))


@main.command()
@_target_options
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Test images. Default: as the budget allows.")
@click.option("--budget", default="10m", show_default=True, help="Time: 90s, 10m, 2h.")
@click.option("--budget-scale", type=NUMBER, help="Of the adaptive suite. Default: as time allows.")
@_STRICT
@_RESULTS
@_DATA
def audit(**words: Any) -> None:
    """Try everything that may break one defense, and print a verdict.

    The same command again goes on with what the budget left out.

    \b
    harness audit --defense menet-usvt --dataset mnist --budget 30m
    """
    from harness import commands

    sys.exit(commands.audit(**words))


@main.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("keys", nargs=-1)
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True, help="New draws.")
@click.option("--device", help="cpu, cuda, cuda:1. Default: cuda where there is one.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of weights and estimates.")
@click.option("--quiet", is_flag=True, help="No progress.")
@_DATA
def verify(**words: Any) -> None:
    """Check records against the attacked images on disk: threat model, new draws, every number.

    Exit status 1 where something is contradicted, or cannot be verified.

    \b
    harness verify results/runs
    """
    from harness import commands

    sys.exit(commands.check(**words))


@main.command()
@_target_options
@click.option("--attack", default="bpda", show_default=True)
@click.option("--steps", "steps_values", help="Gradient steps, such as 10,20,40,80.")
@click.option("--eot", "eot_values", help="Draws a step, such as 1,4,16.")
@click.option("--restarts", "restarts_values", help="Restarts, such as 1,2,4.")
@click.option("--epsilons", "epsilon_values", help="Such as 2/255,8/255,1.")
@click.option("--equal-budget", is_flag=True, help="Steps against draws at equal passes.")
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many test images.")
@click.option("-A", "attack_options", type=ASSIGNMENT, multiple=True, help="Attack's field.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("."), help="Folder.")
@_STRICT
@_RESULTS
@_DATA
def convergence(**words: Any) -> None:
    """Robust accuracy against steps, draws, restarts and epsilon: convergence.csv and .svg.

    \b
    harness convergence --defense menet-usvt --steps 10,40,160 --eot 1,8 --epsilons 0.1,0.3,1
    """
    from harness import commands

    sys.exit(commands.curves(**words))


@main.command()
@click.option("--format", "form", type=click.Choice(["md", "csv"]), default="md", show_default=True)
@_STRICT
@_RESULTS
def table(form: str, results: Path, strict: bool) -> None:
    """The stored records as a table: rows are defenses, columns attacks.

    \b
    harness table --results results/runs --format csv
    """
    from harness import tables
    from harness.audit import strict_status
    from harness.store import Store

    if not (results / "records").is_dir():
        raise HarnessError(f"no records in {results}: `harness run` makes some, or name --results")
    loaded = tables.load(Store(results))
    click.echo(tables.markdown(loaded) if form == "md" else tables.csv(loaded), nl=False)
    if strict:
        raised = {flag for record in loaded.records for flag in record.flags}
        sys.exit(strict_status(raised))


@main.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--profile", default="smoke", show_default=True, help="smoke, laptop, gpu, paper.")
@click.option("--dry-run", is_flag=True, help="List cells and estimate time and memory.")
@click.option("--render", is_flag=True, help="Only draw tables and figures from the records.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--device", help="cpu, cuda, cuda:1. Default: cuda where there is one.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of weights and estimates.")
@click.option("--quiet", is_flag=True, help="No progress.")
@_scale_options
@click.option("--results", type=click.Path(path_type=Path), help="Default: results/runs/PROFILE.")
@_DATA
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
        from harness.drawing import command
    else:
        from harness.reproduce import command
    sys.exit(command(**words))


@main.command()
@click.option(
    "--output", type=click.Path(path_type=Path), help="Default: report.html in --results."
)
@_RESULTS
def report(results: Path, output: Path | None) -> None:
    """One HTML page with claims, tables, figures, attacked images and every record. Opens as a file.

    \b
    harness report --results results/runs/smoke
    """
    from harness.report import write

    click.echo(str(write(results, output)))


@main.command()
@click.option("--dataset", "datasets", multiple=True, required=True, help="Repeat for more panels.")
@click.option("--images", type=click.IntRange(1), default=10000, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("."), help="Folder.")
@_DATA
def rank(**words: Any) -> None:
    """Approximate rank of a dataset's images: rank.svg, .png and .csv (the paper's Figure 1).

    \b
    harness rank --dataset mnist --dataset cifar10
    """
    from harness.images import rank_command

    sys.exit(rank_command(**words))


@main.command()
@click.option("--dataset", default="digits", show_default=True)
@click.option("--image", type=click.IntRange(0), default=0, show_default=True, help="Its position.")
@click.option("--defense", "defenses", multiple=True, help="Default: ME-Net's three.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("."), help="Folder.")
@_DATA
def reconstruct(**words: Any) -> None:
    """One image under masks of p = 0.1 to 1, and its estimates side by side (the paper's Figure 2).

    \b
    harness reconstruct --dataset cifar10 --image 7
    """
    from harness.images import reconstruct_command

    sys.exit(reconstruct_command(**words))


@main.command()
@click.option("--cache", type=click.Path(path_type=Path), help="As the run had it.")
@_RESULTS
def status(results: Path, cache: Path | None) -> None:
    """How far runs are: done, running, failed with the reason, left, and an estimate.

    \b
    harness status --results results/runs
    """
    from harness import status as status_
    from harness.store import Store

    for line in status_.lines(Store(results, cache)):
        click.echo(line)


@main.command()
@click.option("--what", multiple=True, help="Only these kinds, as `harness clean` names them.")
@click.option("--yes", is_flag=True, help="Delete. Without --what: only what nobody misses.")
@click.option("--cache", type=click.Path(path_type=Path), help="As the run had it.")
@_RESULTS
def clean(what: tuple[str, ...], yes: bool, results: Path, cache: Path | None) -> None:
    """What could be deleted, and what it would cost to make again.

    \b
    harness clean --what attacked --what states --yes
    """
    from harness import clean as clean_
    from harness.store import Store

    for line in clean_.run(Store(results, cache), what, yes=yes):
        click.echo(line)


@main.command(name="list")
@click.argument("kind", required=False)
@click.option("--all", "everything", is_flag=True, help="With what the attack libraries ship.")
def list_(kind: str | None, everything: bool) -> None:
    """All attacks, defenses, models, datasets and estimators, one line each.

    \b
    harness list attacks --all
    """
    from harness import engine

    engine.list_plugins(kind, everything=everything)


main.add_command(cli_own.new)
main.add_command(cli_own.check)


@main.group()
def data() -> None:
    """Look at datasets."""


@data.command(name="check")
@click.argument("name")
@_DATA
def data_check(name: str, data_dir: Path | None) -> None:
    """Counts, digest, shape and range of a dataset.

    \b
    harness data check mnist --data-dir ~/data
    """
    from harness.data import summary
    from harness.progress import reporter

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
