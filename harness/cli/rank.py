"""`harness rank`: compute the approximate ranks of a dataset's images."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import DATA


@click.command()
@click.option("--dataset", "datasets", multiple=True, required=True, help="Repeat for more panels.")
@click.option("--images", type=click.IntRange(1), default=10000, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("."), help="Folder.")
@DATA
def rank(datasets: tuple[str, ...], images: int, output: Path, data_dir: Path | None) -> None:
    """Compute the approximate ranks of a dataset's images (ME-Net, Figure 1).

    The results are written to rank.svg, rank.png and rank.csv.

    \b
    harness rank --dataset mnist --dataset cifar10
    """
    from harness.paper import protocol
    from harness.paper.figures import draw
    from harness.paper.figures.images import rank_data
    from harness.results import style
    from harness.storage.progress import reporter

    figure = protocol.load("figure1")
    found = rank_data(datasets, images, figure.defenses[0], data_dir=data_dir, report=reporter())
    style.save(draw.draw_ranks(figure, found), output, "rank")
