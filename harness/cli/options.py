"""Options of several commands, and the conversion of words to numbers, sizes and typed options objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import click

from harness.targets.memory import size
from harness.types import HarnessError, number

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])


@overload
def typed(words: dict[str, Any], a: type[A], /) -> A: ...
@overload
def typed(words: dict[str, Any], a: type[A], b: type[B], /) -> tuple[A, B]: ...
@overload
def typed(words: dict[str, Any], a: type[A], b: type[B], c: type[C], /) -> tuple[A, B, C]: ...
def typed(words: dict[str, Any], *kinds: type[Any]) -> Any:
    """Return options objects of these types, filled from a command's words; each word belongs to one of them.

    Raises:
        TypeError: a word is no field of them.
    """
    left = dict(words)
    made = []
    for kind in kinds:
        names = [field.name for field in dataclasses.fields(kind) if field.name in left]
        made.append(kind(**{name: left.pop(name) for name in names}))
    if left:
        raise TypeError(f"no options object has the fields {', '.join(left)}")
    return made[0] if len(made) == 1 else tuple(made)


class _Read(click.ParamType[Any]):
    """A parameter type whose words are read by a function that raises HarnessError where they do not fit."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self.read = read

    def convert(self, value: Any, param: Any, context: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.read(value)
        except HarnessError as error:
            self.fail(str(error), param, context)


def assignment(text: str) -> tuple[str, str]:
    """Return (key, value) of a text `key=value`.

    Raises:
        HarnessError: the text has another form.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise HarnessError(f"{text!r} is not of the form key=value")
    return key.strip().replace("-", "_"), value.strip()


def _seconds(text: str) -> float:
    """Return the seconds of `90s`, `10m` or `2h`; raise HarnessError for anything else."""
    from harness.audit.budget import seconds  # it imports torch

    return seconds(text)


NUMBER, MEMORY, TIME = _Read("number", number), _Read("size", size), _Read("time", _seconds)


def assignments(flag: str, name: str, said: str | None = None) -> Callable[[F], F]:
    """Return an option that is repeated for each parameter: `-D name=value`."""
    return click.option(
        flag,
        name,
        type=_Read("key=value", assignment),
        multiple=True,
        callback=lambda _context, _option, pairs: dict(pairs),
        help=said,
    )


RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results/runs"),
    show_default=True,
    help="Folder of records and, without --cache, of weights.",
)
DATA = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder with the datasets' files. Default: HARNESS_DATA, else a cache folder of yours.",
)


DEVICE = click.option("--device", help="cpu, cuda, cuda:1. Default: cuda where there is one.")
CACHE = click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder of weights and estimates."
)
QUIET = click.option("--quiet", is_flag=True, help="Show no progress.")
ISOLATE = click.option(
    "--isolate",
    is_flag=True,
    help="Run each cell in a process of its own; if that dies, only the cell fails.",
)
CELL_LIMIT = click.option(
    "--cell-limit",
    type=TIME,
    help="Time that an isolated cell may take, for guests that hang: 90s, 10m.",
)
STRICT = click.option(
    "--strict", is_flag=True, help="Exit status 3 where a number is flagged (except scaled-down)."
)


PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    help="Of training and gradients; judged in float32. Default: auto, which is bfloat16 on a GPU.",
)


WEIGHTS = click.option(
    "--weights", help="Weights of your own model, which is not trained: FILE or `pretrained`."
)
NORMALISATION = click.option(
    "--normalisation", help="For your own model: inside (default), imagenet, cifar10, MEAN/STD."
)


def scale_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a run's machines, memory, shared store and log to a command."""
    for option in (
        click.option(
            "--memory",
            type=MEMORY,
            help="Limit at which batches are halved: 4GB (of the GPU, if used).",
        ),
        click.option(
            "--workers", type=click.IntRange(1, 512), help="Processes that share the work."
        ),
        click.option("--devices", help="A process for each GPU: 0,1,2,3."),
        click.option(
            "--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True
        ),
        click.option("--address", help="Ray's cluster: auto, HOST:PORT. Default: this machine."),
        click.option(
            "--gpus-per-cell",
            type=NUMBER,
            help="GPUs of each Ray task: 1, 1/4. Default: 1 on cuda.",
        ),
        click.option(
            "--store",
            help="Share work through an object store: s3://bucket/prefix, file:///folder.",
        ),
        click.option(
            "--log", type=click.Path(path_type=Path), help="Append JSON lines to this file."
        ),
    ):
        command = option(command)
    return command


def target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name one defended model, its ball, its device and its cache to a command."""
    for option in reversed(
        (
            click.option("--dataset", default="digits", show_default=True),
            click.option("--defense", required=True),
            click.option(
                "--model", help="Classifier. Default: the dataset's. Your own: my.py:build."
            ),
            WEIGHTS,
            NORMALISATION,
            click.option("--training", type=click.Choice(["pure", "adversarial"]), default="pure"),
            click.option(
                "--epochs", type=click.IntRange(1), help="Epochs; fewer compress the schedule."
            ),
            click.option("--epsilon", type=NUMBER, help="Radius of the ball: 0.3, 8/255."),
            click.option("--norm", type=click.Choice(["linf", "l2"]), default="linf"),
            click.option("--seed", type=int, default=0, show_default=True),
            assignments("-D", "defense_options"),
            assignments("-T", "training_options"),
            click.option("--device", help="Default: cuda where there is one."),
            PRECISION,
            CACHE,
            QUIET,
        )
    ):
        command = option(command)
    return command
