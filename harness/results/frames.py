"""Turn records into pandas frames, files, and TensorBoard curves. Only the last needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.results import tables
from harness.results.records import Record, Timing
from harness.storage.store import Store
from harness.types import DamageError, HarnessError

if TYPE_CHECKING:
    import pandas


def of_records(records: Sequence[Record], timings: Mapping[str, Timing]) -> pandas.DataFrame:
    """Return a row for each record, in the columns of `harness table --format csv`."""
    import pandas

    return pandas.DataFrame([tables.flat(record, timings.get(record.key)) for record in records])


def load(results: str | Path = "results/runs") -> pandas.DataFrame:
    """Return all records of a results folder as a frame.

    Raises:
        HarnessError: there are none. DamageError: one is damaged.
    """
    folder = Path(results)
    if not (folder / "records").is_dir():
        raise HarnessError(f"no records in {folder}: `harness run` makes some")
    loaded = tables.load(Store(folder))
    if loaded.damage:  # a frame cannot show that rows are missing
        raise DamageError("; ".join(loaded.damage))
    return of_records(loaded.records, loaded.timings)


def write(frame: pandas.DataFrame, path: str | Path) -> Path:
    """Write a frame as .csv, .parquet or .json.

    Raises:
        HarnessError: another suffix, or parquet without pyarrow.
    """
    target = Path(path)
    writers: dict[str, Callable[[], object]] = {
        ".csv": lambda: frame.to_csv(target, index=False),
        ".json": lambda: frame.to_json(target, orient="records", indent=1),
        ".parquet": lambda: frame.to_parquet(target, index=False),
    }
    if target.suffix not in writers:
        raise HarnessError(f"{target} has no known suffix: write {', '.join(writers)}")
    try:
        writers[target.suffix]()
    except ImportError as error:
        raise HarnessError("parquet needs pyarrow: `pip install pyarrow` brings it") from error
    except OSError as error:
        raise HarnessError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def to_tensorboard(records: Sequence[Record], folder: str | Path) -> None:
    """Write robust accuracy by attack step, and the final numbers, as TensorBoard events: one run a record.

    Raises:
        HarnessError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise HarnessError("this needs tensorboard: `pip install tensorboard` brings it") from error
    for record in records:
        name = f"{record.cell.target.label}-{record.cell.attack.name}-{record.key[:8]}"
        with SummaryWriter(str(Path(folder) / name.replace(":", "-").replace("/", "-"))) as writer:
            for point in record.trace:
                writer.add_scalar("robust accuracy by step", point.accuracy, point.step)
            writer.add_scalar("clean accuracy", record.clean.mean, 0)
            writer.add_scalar("robust accuracy", record.robust.mean, 0)
            writer.add_text("flags", "  \n".join(f"{k}: {v}" for k, v in record.flags.items()))
