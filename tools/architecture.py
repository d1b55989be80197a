"""Draw docs/figures/rooms.svg: the rooms of `harness/` and who imports whom, read from the code.

python tools/architecture.py [--check]
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "figures" / "rooms.svg"
PLUGINS = ("attacks", "defenses", "models")
API = "plugin API"
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 132, 46, 26, 44, 16


def rooms() -> dict[str, str]:
    """Return each room with the sentence in its `__init__`; plugin packages count as one room each."""
    found = {API: "types, registry, random, geometry, spec"}
    for folder in sorted((ROOT / "harness").iterdir()):
        if (folder / "__init__.py").exists():
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
            found[folder.name] = (text or "").split("\n")[0]
    return found


def arrows(names: set[str]) -> dict[str, set[str]]:
    """Return for each room the rooms that its files import, inside functions too."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for path in (ROOT / "harness").glob("*/"):
        if path.name not in names:
            continue
        for file in path.resolve().rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                for name in imported(node):
                    other = name.split(".")[1] if "." in name else ""
                    found[path.name].add(other if other in names else API)
        found[path.name].discard(path.name)
    return found


def imported(node: ast.AST) -> list[str]:
    """Return the names of the project's modules that one import statement gives."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        names = [node.module]
        if node.module == "harness":
            names = [f"harness.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "harness"]


def floors(below: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of each room: one above the highest that it imports.

    Raises:
        SystemExit: rooms import each other in a circle.
    """
    found: dict[str, int] = {}
    while len(found) < len(below):
        ready = [name for name in below if name not in found and below[name] <= found.keys()]
        if not ready:
            raise SystemExit(f"a circle among {sorted(below.keys() - found.keys())}")
        for name in ready:
            found[name] = 1 + max((found[other] for other in below[name]), default=-1)
    return found


def reduced(below: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the arrows that no other way implies (the transitive reduction)."""

    def reach(name: str) -> set[str]:
        return below[name].union(*(reach(other) for other in below[name]), set())

    return [
        (name, other)
        for name in sorted(below)
        for other in sorted(below[name])
        if not any(other in reach(between) for between in below[name] - {other})
    ]


def picture() -> str:
    """Return the drawing as SVG: what is imported stands below what imports it."""
    names = rooms()
    below = arrows(set(names))
    floor = floors(below)
    rows = [sorted(n for n in names if floor[n] == f) for f in range(max(floor.values()) + 1)]
    width = max(len(row) for row in rows) * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    height = len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    place = {}
    for number, row in enumerate(rows):
        left = (width - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        y = height - MARGIN - HEIGHT - number * (HEIGHT + GAP_Y)
        place.update({name: (left + k * (WIDTH + GAP_X), y) for k, name in enumerate(row)})
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        "<title>Rooms of the harness; an arrow points from a room to one that it imports</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#777"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for name, other in reduced(below):
        (x0, y0), (x1, y1) = place[name], place[other]
        x0, x1 = x0 + WIDTH / 2, x1 + WIDTH / 2
        passing = floor[name] - floor[other] > 1 and abs(x0 - x1) < WIDTH / 2
        bow = WIDTH * 0.9 if passing else 0  # around the room between
        lines.append(
            f'<path d="M{x0:.0f} {y0 + HEIGHT} C{x0 + bow:.0f} {y0 + HEIGHT + GAP_Y / 2:.0f} '
            f'{x1 + bow:.0f} {y1 - GAP_Y / 2:.0f} {x1:.0f} {y1}" '
            'fill="none" stroke="#999" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in sorted(place.items()):
        fill = "#fdf3d8" if name in PLUGINS else "#dfeaf7" if name != API else "#e8e8e8"
        lines.append(
            f'<g><title>{names[name]}</title><rect x="{x:.0f}" y="{y}" width="{WIDTH}" '
            f'height="{HEIGHT}" rx="6" fill="{fill}" stroke="#555"/><text x="{x + WIDTH / 2:.0f}" '
            f'y="{y + HEIGHT / 2 + 5:.0f}" text-anchor="middle">{name}</text></g>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> int:
    """Write the picture, or with `--check` compare it with the stored one. Return the exit status."""
    drawn = picture()
    if "--check" in sys.argv:
        return int(not PICTURE.exists() or PICTURE.read_text("utf-8") != drawn)
    PICTURE.write_text(drawn, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
