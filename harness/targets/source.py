"""The source of a run's defended models: the interface of a model store and of a given model."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import torch

from harness.cells.cells import Target
from harness.datasets.data import Split
from harness.results.resolved import Plugin, ResolvedTarget
from harness.storage import keys, store
from harness.storage.progress import Reporter
from harness.storage.store import DamagedFile, Store
from harness.targets.defended import Defended
from harness.targets.training import Stop
from harness.types import Attack, Dataset, Defense, Spec


@dataclasses.dataclass(kw_only=True)
class TargetSource(abc.ABC):
    """A source of defended models and datasets, with the store and the device of the run."""

    store: Store
    device: torch.device
    reporter: Reporter
    stop: Stop
    data_dir: Path | None = None
    """The folder of the datasets' files."""
    damage: list[str] = dataclasses.field(default_factory=list)
    """A line for each file that was found damaged and set aside."""

    @abc.abstractmethod
    def dataset(self, name: str, split: Split) -> Dataset:
        """Return a dataset; it is loaded once in a run."""

    def whole(self, name: str, split: Split) -> Dataset:
        """Return a dataset whose content is as it was loaded, whatever code ran in the process since."""
        return self.dataset(name, split)

    @abc.abstractmethod
    def defense(self, target: Target) -> Defense:
        """Return the defense as the target runs it."""

    @abc.abstractmethod
    def resolved(self, target: Target) -> ResolvedTarget:
        """Return everything that the target's weights depend on."""

    @abc.abstractmethod
    def is_trained(self, target: Target) -> bool:
        """Return whether the target's weights exist."""

    @abc.abstractmethod
    def obtain(self, target: Target, *, wait: bool = True) -> Defended:
        """Return the defended model, frozen and in evaluation mode.

        Raises:
            HarnessError: it cannot be made.
            DamagedFile: its checkpoint is damaged.
            Busy: another run trains it, and `wait` is off.
            Interrupted: a signal came.
        """

    def key(self, target: Target) -> str:
        """Return the name of the target's checkpoint."""
        return self.resolved(target).key

    def mend(self, error: DamagedFile) -> str:
        """Set a damaged file aside and report it; return the line of the report.

        Raises:
            StoreError: it cannot be moved.
        """
        aside = store.set_aside(error.path)
        line = f"{error.path} is damaged: {error.reason}. It was set aside as {aside.name}"
        self.notice(line)
        return line

    def notice(self, line: str) -> None:
        """Report a line about damage now, and again at the end of the run."""
        self.damage.append(line)
        self.reporter.say(line)


def resolve(plugin: Any, spec: Spec, *, without: tuple[str, ...] = ()) -> Plugin:
    """Return every parameter of a built plugin, defaults included, with the version of its code.

    A field that is itself an attack or a defense (`transfer(pgd)`) is resolved in the same way, so that two
    attacks that differ only inside never share a key.

    Args:
        plugin: an attack or a defense, or the function that builds a model.
        without: the names of parameters that do not matter here.
    """
    made = isinstance(plugin, Attack | Defense)
    if dataclasses.is_dataclass(plugin) and not isinstance(plugin, type):
        parameters = dataclasses.asdict(plugin)
        for field in dataclasses.fields(plugin):
            value = getattr(plugin, field.name)
            if isinstance(value, Attack | Defense):
                inside = spec.inner or Spec(type(value).__qualname__)
                parameters[field.name] = resolve(value, inside)
    else:
        parameters = dict(spec.parameters)
    if hasattr(plugin, "describe"):  # weights that came with a model: their digest, not their path
        parameters = plugin.describe(parameters)
    return Plugin(
        name=spec.name,
        kind=type(plugin).__qualname__ if made else "",
        parameters=msgspec.to_builtins(
            {name: value for name, value in parameters.items() if name not in without}
        ),
        code=keys.code_version(type(plugin) if made else plugin),
    )
