"""`harness rank`: approximate ranks of a dataset's images."""

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
    """Approximate rank of a dataset's images: rank.svg, .png and .csv (the paper's Figure 1).

    \b
    harness rank --dataset mnist --dataset cifar10
    """
    from harness.paper import protocol
    from harness.paper.figures import draw
    from harness.paper.figures.images import rank_data
    from harness.storage.progress import reporter

    found = rank_data(datasets, images, data_dir=data_dir, report=reporter())
    draw.save(draw.draw_ranks(protocol.load("figure1"), found), output, "rank")
