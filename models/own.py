"""A model that comes with its weights: from a file of one's own, timm, torch hub or torch.export.

`own(build=my.py:build,weights=w.safetensors)` is what `--model my.py:build --weights w.safetensors` means.
Such a model is never trained here; what it was given is hashed, so that a record names these very weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.models import exported
from harness.models.normalise import moments, normalised
from harness.registry import models, nearest
from harness.types import HarnessError

PRETRAINED = "pretrained"
"""In place of a file: the weights that the library itself ships or downloads."""


@models.register("own")
def own(
    shape: tuple[int, int, int],
    classes: int,
    *,
    build: str = "",
    weights: str = "",
    normalisation: str = "inside",
    sha256: str = "",
    **options: Any,
) -> nn.Module:
    """Model that comes with its weights: own(build=my.py:build,weights=w.safetensors)."""
    if not build:
        raise HarnessError(
            "own needs build=: my.py:build, timm:NAME, hub:owner/repo:NAME, file.pt2"
        )
    network = _network(build, shape, classes, weights == PRETRAINED, options)
    if weights not in ("", PRETRAINED):
        if sha256 and file_digest(Path(weights)) != sha256:
            raise HarnessError(f"{weights} is not the file that was asked for: its SHA-256 differs")
        _fill(network, read_weights(Path(weights)), Path(weights))
    return with_normalisation(network, shape[0], _stated(network, build, normalisation))


def describe(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can change a number: the parameters, with the content of files for their place."""
    known = {key: value for key, value in parameters.items() if key not in ("weights", "sha256")}
    weights, build = str(parameters.get("weights", "")), str(parameters.get("build", ""))
    _find(build)
    if weights and weights != PRETRAINED:
        known["weights"] = file_digest(Path(weights))
    else:
        known["weights"] = weights
    library, _, rest = build.partition(":")
    if library == "timm":
        known["timm"] = _version("timm")
    for path in (Path(build), Path(library)):
        if path.suffix in (".py", ".pt2"):
            known["build"] = f"{file_digest(path)}:{rest}"
    return known


def with_normalisation(network: nn.Module, channels: int, normalisation: str) -> nn.Module:
    """Put `network` behind the normalisation that a word of --normalisation names."""
    return normalised(network, channels, *moments(normalisation, channels))


def usual_normalisation(build: str, weights: str | None) -> str:
    """Return the word for --normalisation where the user gives none.

    timm states what each of its pretrained models was trained on; other models take pixels in [0, 1].
    """
    stated = build.startswith("timm:") and weights == PRETRAINED
    return "timm" if stated else "inside"


own.describe = describe
own.given = True
own.moments = moments
own.with_normalisation = with_normalisation
own.usual_normalisation = usual_normalisation


# --- where a network comes from -------------------------------------------------------------------


def _network(
    build: str,
    shape: tuple[int, int, int],
    classes: int,
    pretrained: bool,
    options: Mapping[str, Any],
) -> nn.Module:
    library, _, rest = build.partition(":")
    if library == "timm":
        return _timm(rest, shape, classes, pretrained, options)
    if library == "hub":
        return _hub(rest, shape, classes, pretrained, options)
    if Path(build).suffix in (".pt2", ".pt", ".pth", ".onnx"):
        return exported.load(Path(build))
    with _own_packages(Path(library).parent if library.endswith(".py") else None):
        network = _call(models.get(build), shape, classes, options, build)
    if not isinstance(network, nn.Module):
        raise HarnessError(
            f"{build} gave a {type(network).__name__}: it must return a torch module"
        )
    return network


def _find(build: str) -> None:
    """Check that a name means something before anything is built or stored.

    Raises:
        HarnessError: there is no such model.
    """
    library, _, rest = build.partition(":")
    if library == "timm":
        _find_in_timm(rest)
    elif library != "hub" and Path(build).suffix not in (".pt2", ".pt", ".pth", ".onnx", ""):
        with _own_packages(Path(library).parent if library.endswith(".py") else None):
            models.get(build)


def _call(
    make: Callable[..., Any],
    shape: tuple[int, int, int],
    classes: int,
    options: Mapping[str, Any],
    name: str,
) -> Any:
    """Call `make` with those of shape, classes and the options that it takes."""
    signature = inspect.signature(getattr(make, "make", make))
    takes = signature.parameters
    offered = {"shape": shape, "classes": classes, "num_classes": classes, "in_chans": shape[0]}
    arguments = {key: value for key, value in offered.items() if key in takes}
    try:
        signature.bind_partial(**arguments, **options)
    except TypeError as error:
        raise HarnessError(f"{name}: {error}. It takes {', '.join(takes) or 'nothing'}") from error
    return make(**arguments, **options)


def _timm(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    pretrained: bool,
    options: Mapping[str, Any],
) -> nn.Module:
    timm = _find_in_timm(name)
    chosen = dict(options)
    if not pretrained:  # pretrained ones keep the classes and channels that they were trained for
        chosen = {"num_classes": classes, "in_chans": shape[0], **chosen}
    made: nn.Module = timm.create_model(name, pretrained=pretrained, **chosen)
    return made


def _find_in_timm(name: str) -> Any:
    """Return timm.

    Raises:
        HarnessError: it is not installed, or has no such model.
    """
    try:
        import timm
    except ImportError:
        raise HarnessError("timm is not installed: `pip install timm` brings it") from None
    if not timm.is_model(name.partition(".")[0]):
        hint = nearest(name, timm.list_models(), otherwise="timm.list_models() shows all")
        raise HarnessError(f"timm has no model {name!r}: {hint}")
    return timm


def _hub(
    rest: str,
    shape: tuple[int, int, int],
    classes: int,
    pretrained: bool,
    options: Mapping[str, Any],
) -> nn.Module:
    """Load `NAME` by torch hub from `owner/repo[:tag]:NAME` or `FOLDER:NAME`.

    The code of the repository is run: that is how torch hub works.
    """
    where, _, entry = rest.rpartition(":")
    if not where or not entry:
        raise HarnessError(
            f"hub:{rest} names no entry: write hub:owner/repo:NAME or hub:FOLDER:NAME"
        )
    local = Path(where).expanduser().is_dir()
    source: Any = "local" if local else "github"
    trust: Any = None if local else "check"
    chosen = dict(options)
    if pretrained:
        chosen["pretrained"] = True

    def make(**arguments: Any) -> Any:
        load: Any = torch.hub.load
        return load(where, entry, source=source, trust_repo=trust, **arguments)

    try:
        with _own_packages(None):
            made = make(**chosen)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        first = str(error).strip().split("\n")[0]
        raise HarnessError(f"hub:{rest} does not load: {first}") from error
    if not isinstance(made, nn.Module):
        raise HarnessError(f"hub:{rest} gave a {type(made).__name__}: it must be a torch module")
    return made


@contextlib.contextmanager
def _own_packages(folder: Path | None) -> Iterator[None]:
    """Let foreign code import its own `models`, a common name, where ours is loaded already.

    Modules beside the file are found too, as by `python my.py`.
    """
    models.names()  # ours are all loaded by now
    mine = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_mine(name)}
    path = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if _is_mine(name)]:
            del sys.modules[name]
        sys.modules.update(mine)


def _is_mine(name: str) -> bool:
    return name.partition(".")[0] in ("models", "attacks", "defenses")


# --- weights --------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, or of a torch file, without running code.

    Raises:
        HarnessError: there is none, or it holds anything but tensors.
    """
    if not path.is_file():
        raise HarnessError(
            f"no file {path}: --weights takes a .safetensors (or .pt) file of weights"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return _plain(load(path.read_bytes()))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is none makes its reader raise
        first = str(error).strip().partition(". ")[0].partition("\n")[0].rstrip(".")
        raise HarnessError(
            f"{path} cannot be read as weights without running code: {first}. Save the weights "
            "alone: safetensors.torch.save_file(model.state_dict(), 'w.safetensors')"
        ) from error
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise HarnessError(f"{path} holds no state_dict: torch.save(model.state_dict(), path)")
    return _plain(found)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the prefixes `module.` (DataParallel) and `_orig_mod.` (compile)."""
    found = dict(tensors)
    for prefix in ("_orig_mod.", "module."):
        if found and all(name.startswith(prefix) for name in found):
            found = {name[len(prefix) :]: value for name, value in found.items()}
    return found


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and wanted[name].shape != tensors[name].shape
    ]
    if not (missing or extra or shapes):
        network.load_state_dict(dict(tensors))
        return
    parts = []
    if missing:
        parts.append(
            f"{len(missing)} of the model's tensors are not in it ({', '.join(missing[:3])})"
        )
    if extra:
        parts.append(f"{len(extra)} of its tensors are not in the model ({', '.join(extra[:3])})")
    parts += shapes[:1]
    raise HarnessError(f"{path} does not fit the model: {'; '.join(parts)}")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content.

    Raises:
        HarnessError: there is none.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HarnessError(f"cannot read {path}: {error.strerror}") from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


# --- normalisation --------------------------------------------------------------------------------


def _stated(network: nn.Module, build: str, normalisation: str) -> str:
    """Return the normalisation; for `timm`, the one that timm states for its pretrained model."""
    if normalisation != "timm":
        return normalisation
    stated = getattr(network, "pretrained_cfg", None) or {}
    if "mean" not in stated or "std" not in stated:
        raise HarnessError(f"{build} states no normalisation: --normalisation inside, or mean/std")
    return "/".join(",".join(map(str, stated[name])) for name in ("mean", "std"))


@models.bridge("timm")
def timm_model(rest: str) -> Callable[..., nn.Module]:
    """Models of timm by name, trained here: `timm:resnet18`. With --weights they come trained."""

    _find_in_timm(rest)

    def build(shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
        return _timm(rest, shape, classes, False, options)

    return build
