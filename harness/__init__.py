"""A benchmark harness for adversarial robustness whose numbers carry their doubt.

`harness.evaluate(model, images, labels)`; see `docs/quickstart.md`. Nothing heavy is imported before it
is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api.bridges import attacker, to_art, to_foolbox, to_torchattacks
    from harness.api.evaluate import evaluate, load_defended, load_images
    from harness.results.frames import load as load_records

__version__ = "0.1.0"
__all__ = [
    "attacker",
    "evaluate",
    "load_defended",
    "load_images",
    "load_records",
    "to_art",
    "to_foolbox",
    "to_torchattacks",
]

_HOMES = {
    "evaluate": "harness.api.evaluate",
    "load_defended": "harness.api.evaluate",
    "load_images": "harness.api.evaluate",
    "load_records": "harness.results.frames:load",
    "attacker": "harness.api.bridges",
    "to_art": "harness.api.bridges",
    "to_foolbox": "harness.api.bridges",
    "to_torchattacks": "harness.api.bridges",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute or name)
