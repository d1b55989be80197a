"""`harness reconstruct`: draw one image under masks with its reconstructions."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import DATA


@click.command()
@click.option("--dataset", default="digits", show_default=True)
@click.option("--image", type=click.IntRange(0), default=0, show_default=True, help="Its position.")
@click.option("--defense", "defenses", multiple=True, help="Default: ME-Net's three.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("."), help="Folder.")
@DATA
def reconstruct(
    dataset: str, image: int, defenses: tuple[str, ...], output: Path, data_dir: Path | None
) -> None:
    """Draw one image under masks of p = 0.1 to 1 and its reconstructions (ME-Net, Figure 2).

    \b
    harness reconstruct --dataset cifar10 --image 7
    """
    from harness.paper import protocol
    from harness.paper.figures import draw
    from harness.paper.figures.images import mask_data
    from harness.results import style
    from harness.storage.progress import reporter

    table = protocol.load("figure2")
    found = mask_data(
        dataset,
        defenses or table.defenses,
        table.probabilities,
        position=image,
        data_dir=data_dir,
        report=reporter(),
    )
    style.save(draw.draw_masks(table, found), output, "reconstruct")
