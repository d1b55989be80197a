"""The result of `harness.evaluate`: a number with its doubts, as text, table, picture or frame."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.results import flags as audit
from harness.results import frames, tables
from harness.results.paired import shares
from harness.results.records import Failure, Record, Timing
from harness.results.worst_case import Worst

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

_PAIRS = 6
"""The number of images that a picture shows with their attacked versions."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """The robust accuracy of a model on some images, under each attack and under the worst for each image.

    It is shown by `print(result)`, `result.to_pandas()` and `result.plot()`; a notebook draws it.
    """

    records: tuple[Record, ...]
    """The records, one for each attack, with the flags that they raise together."""
    failures: tuple[Failure, ...]
    """The attacks that gave no number, each with its reason."""
    worst: Worst
    timings: Mapping[str, Timing]
    originals: Tensor
    """The original images (N, C, H, W) in [0, 1]."""
    labels: Tensor
    images: Tensor
    """The attacked images (N, C, H, W): each by the attack that does it the most harm."""
    notes: tuple[str, ...] = ()
    """The differences from the adaptive suite as published: attacks that were scaled down or left out."""

    @property
    def count(self) -> int:
        return self.worst.count

    @property
    def robust(self) -> float:
        """The robust accuracy, mean over the scoring draws, with each image under its worst attack."""
        return self.worst.mean

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of `robust`."""
        return self.worst.interval

    @property
    def clean(self) -> float:
        """The accuracy on the original images, which is the control at epsilon = 0."""
        return self.records[0].clean.mean

    @property
    def flags(self) -> dict[str, str]:
        """Every flag by name, with its first reason; docs/flags.md explains each flag."""
        found: dict[str, str] = {}
        for record in self.records:
            for flag, reason in record.flags.items():
                found.setdefault(flag, f"{record.cell.attack}: {reason}")
        if self.notes:
            found.setdefault("scaled-down", "the notes say how")
        return found

    def __str__(self) -> str:
        cell = self.records[0].cell
        low, high = self.interval
        lines = [
            f"robust accuracy {self.robust:.1%} [{low:.1%}, {high:.1%}], clean {self.clean:.1%}, "
            f"n = {self.count}",
            f"{cell.target.model} behind {cell.target.label}, {cell.threat.norm} "
            f"epsilon {cell.threat.epsilon:.4g}, "
            f"{self.records[0].resolved.draws} scoring draws",
        ]
        if len(self.records) > 1:
            lines[0] += f", each image under the worst of {len(self.records)} attacks"
        for record in self.records:
            lines.append(f"  {record.robust.mean:6.1%}  {record.cell.attack}")
        for failure in self.failures:
            lines.append(f"       –  {failure.cell.attack}: {failure.kind}: {failure.reason}")
        for flag, reason in self.flags.items():
            lines.append(f"  {flag}: {audit.EXPLANATIONS.get(flag, flag)} ({reason})")
        if not self.flags:
            lines.append("  no flags")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    __repr__ = __str__

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row for each attack, in the columns of `harness table --format csv`."""
        return frames.of_records(self.records, self.timings)

    def per_image(self) -> pandas.DataFrame:
        """Return a row for each image: its label, and its share of right draws for each attack."""
        import pandas

        columns: dict[str, Any] = {"label": self.labels.tolist()}
        columns["clean"] = shares(self.records[0].clean_outcomes, self.count)
        for record in self.records:
            columns[str(record.cell.attack)] = shares(record.robust_outcomes, self.count)
        return pandas.DataFrame(columns)

    def save(self, path: str | Path) -> Path:
        """Write the table as .csv, .parquet or .json, by the suffix of `path`, and return its path."""
        return frames.write(self.to_pandas(), path)

    def plot(self) -> Any:
        """Return a matplotlib figure with the accuracy by attack, its intervals, and attacked images."""
        from matplotlib.figure import Figure

        pairs = min(_PAIRS, self.count)
        figure = Figure(figsize=(9, 1.2 + 0.45 * (len(self.records) + 2)), layout="constrained")
        halves: Any = figure.subfigures(1, 2, width_ratios=(1.2, 1))
        left, right = halves
        self._bars(left.subplots())
        axes = right.subplots(2, pairs, squeeze=False)
        for place, index in enumerate(self._shown(pairs)):
            for row, source in zip(axes, (self.originals, self.images), strict=True):
                picture = source[index].clamp(0, 1).permute(1, 2, 0).numpy()
                gray = picture.shape[2] != 3
                row[place].imshow(
                    picture[:, :, 0] if gray else picture, cmap="gray", vmin=0, vmax=1
                )
                row[place].set_axis_off()
        axes[0][0].set_title("image", loc="left", fontsize=8)
        axes[1][0].set_title("attacked", loc="left", fontsize=8)
        return figure

    def _bars(self, axis: Any) -> None:
        first = self.records[0]
        rows = [("clean", self.clean, first.clean.interval)]
        rows += [(str(r.cell.attack), r.robust.mean, r.robust.interval) for r in self.records]
        if len(self.records) > 1:
            rows.append(("worst for each image", self.robust, self.interval))
        names = [name if len(name) < 40 else name[:37] + "..." for name, _, _ in rows]
        values = [100 * value for _, value, _ in rows]
        spread = [
            [100 * max(0.0, value - low) for _, value, (low, _) in rows],
            [100 * max(0.0, high - value) for _, value, (_, high) in rows],
        ]
        places = list(range(len(rows)))
        axis.barh(places, values, xerr=spread, color="0.7", ecolor="0.2", capsize=2)
        axis.set_yticks(places, names, fontsize=8, parse_math=False)
        axis.invert_yaxis()
        axis.set_xlim(0, 100)
        axis.set_xlabel("accuracy in percent, 95 % Wilson interval", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)

    def _shown(self, count: int) -> list[int]:
        """Return the positions of `count` images to show, those that lost the most first."""
        clean = shares(self.records[0].clean_outcomes, self.count)
        worst = [shares(record.robust_outcomes, self.count) for record in self.records]
        lost = [
            before - min(after)
            for before, after in zip(clean, zip(*worst, strict=True), strict=True)
        ]
        return sorted(range(self.count), key=lambda image: -lost[image])[:count]

    def _repr_html_(self) -> str:
        low, high = self.interval
        rows = "".join(
            f"<tr><td>{html.escape(str(r.cell.attack))}</td><td>{tables.with_interval(r)}</td>"
            f"<td>{html.escape(', '.join(r.flags) or 'none')}</td></tr>"
            for r in self.records
        )
        doubts = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes) + "".join(
            f"<li><b>{html.escape(flag)}</b>: {html.escape(audit.EXPLANATIONS.get(flag, ''))} "
            f"({html.escape(reason)})</li>"
            for flag, reason in self.flags.items()
        )
        picture = io.BytesIO()
        self.plot().savefig(picture, format="png", dpi=110)
        encoded = base64.b64encode(picture.getvalue()).decode()
        return (
            f"<p><b>robust accuracy {self.robust:.1%}</b> [{low:.1%}, {high:.1%}], "
            f"clean {self.clean:.1%}, n = {self.count}</p>"
            f"<table><tr><th>attack</th><th>robust [95 %]</th><th>flags</th></tr>{rows}</table>"
            f"<ul>{doubts}</ul><img alt='accuracy by attack' src='data:image/png;base64,{encoded}'>"
        )


def worst_images(records: Sequence[Record], images: Mapping[str, Tensor]) -> Tensor:
    """Return (N, C, H, W): of each image, the attacked version under which the fewest draws are right."""
    import torch

    standing = torch.tensor([shares(r.robust_outcomes, r.count) for r in records])
    chosen = standing.argmin(dim=0)
    every = torch.stack([images[record.key] for record in records])
    return every[chosen, torch.arange(len(chosen))]
