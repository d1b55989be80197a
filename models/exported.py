"""Programs of torch.export as data: every member of the file is checked before torch reads it.

torch.export.load is not made for files of strangers. It falls back to a full unpickling where a safe one
fails, loads compiled libraries that lie in the archive, looks operators up in all of torch by their name, and
has symbolic sizes evaluated as Python. What would come to that is refused here, and only what was checked is
handed on, in an archive written anew, so that no second reader sees another content.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.types import HarnessError

_MEMBERS = re.compile(
    r"archive_format|archive_version|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/(serialization_id|version)|models/[\w-]+\.json"
    r"|data/(weights|constants)/((weight|tensor)_\d+|[\w-]+\.pt|[\w-]+_config\.json)"
    r"|data/sample_inputs/[\w-]+\.pt"
    r"|serialized_exported_program\.json|serialized_(state_dict|constants|example_inputs)\.pt"
)
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!\w*(file|storage))\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|torch\.sym_(float|int|ite|max|min|not|sqrt|sum)"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|not_|or_|pow|sub|truediv)"
    r"|math\.(ceil|floor|trunc)"
)
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Abs|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not|Where|Mod|PythonMod"
    r"|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv"
    r"|(Ceil|Floor|Trunc|Round)ToInt|TruncToFloat|ToFloat"
)
_NAME = re.compile(r"[A-Za-z_]\w*")
_ROOT = re.compile(r"[\w. -]+")
_PLAIN = re.compile(r"[\w.:+/ -]*")
_TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_NODES = (
    *(
        ast.Expression,
        ast.Call,
        ast.keyword,
        ast.Name,
        ast.Load,
        ast.Constant,
        ast.BinOp,
        ast.UnaryOp,
    ),
    *(ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)


def load(path: Path) -> nn.Module:
    """Return the program in a file that torch.export.save wrote. Nothing in the file is run to read it.

    Raises:
        HarnessError: no such file, no such program, or one that could run code when it is loaded.
    """
    if not path.is_file():
        raise HarnessError(f"no file {path}: --model takes a program that torch.export.save wrote")
    if path.suffix != ".pt2":
        raise HarnessError(
            f"{path} is no exported program: --model takes my.py:build with --weights {path.name}, "
            "or a .pt2 file that torch.export.save wrote"
        )
    try:
        archive = _checked(path)
        read: Any = torch.export.load
        module: nn.Module = read(archive).module()
    except _Unsafe as error:
        raise HarnessError(
            f"{path} could run code when it is loaded: {error}. Save the weights alone "
            f"(safetensors) and name the architecture: --model my.py:build --weights w.safetensors"
        ) from None
    except Exception as error:  # whatever a file that is none makes its reader raise
        first = str(error).strip().split("\n")[0]
        raise HarnessError(f"{path} is no program of torch.export: {first}") from error
    return Program(module, str(path))


class _Unsafe(Exception):
    """A member of an archive that is more than data."""


def _checked(path: Path) -> io.BytesIO:
    """Return an archive with the members of a file, all of them data.

    Raises:
        _Unsafe: one is more. Whatever reading a file that is no archive raises.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as written:
        names = archive.namelist()
        if len({name.lower() for name in names}) < len(names):
            raise _Unsafe("it has two members of one name")
        for name in names:
            content = archive.read(name)
            _check_member(name, content)
            written.writestr(zipfile.ZipInfo(name), content)
    copy.seek(0)
    return copy


def _check_member(name: str, content: bytes) -> None:
    root, _, inside = name.partition("/")
    known = _MEMBERS.fullmatch(name) or (_ROOT.fullmatch(root) and _MEMBERS.fullmatch(inside))
    if not known:
        raise _Unsafe(f"its member {name!r} is no tensor and no graph")
    if name.endswith(".pt") and content:
        try:
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # a pickle that holds, or is made to look like, anything else
            raise _Unsafe(f"its member {name!r} is a pickle of more than tensors") from error
    elif name.endswith("_config.json"):
        _check_payloads(name, json.loads(content))
    elif name.endswith(".json"):
        _check_graph(name, json.loads(content))


def _check_payloads(name: str, config: Any) -> None:
    """Refuse tensors that are kept as pickles, and objects that are no tensors."""
    for entry in config["config"].values():
        if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise _Unsafe(f"its member {name!r} names a pickle")


def _check_graph(name: str, graph: Any) -> None:
    """Refuse a graph in which a name, operator or size could be anything but that."""
    for key, value in _strings(graph):
        if key in ("target", "as_operator"):
            fits = bool(_OPERATORS.fullmatch(value))
        elif key == "expr_str":
            fits = _is_expression(value)
        elif key in ("in_spec", "out_spec"):
            fits = value == "" or _is_tree(json.loads(value)[1])
        elif key in ("as_string", "as_strings"):
            fits = True  # arguments: written as literals
        else:
            fits = bool(_PLAIN.fullmatch(value)) or _is_expression(value)
        if not fits:
            shown = value if len(value) < 60 else f"{value[:57]}..."
            raise _Unsafe(f"its member {name!r} has {shown!r} as {key}")


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a graph with the name of what it is; names of entries too.

    `metadata` (where a line of the model stood) is never run.
    """
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield "name", name
            if name in ("as_custom_obj", "custom_obj"):
                yield "target", name
            if name != "metadata":
                yield from _strings(each, name)


def _is_expression(text: str) -> bool:
    """Return whether a symbolic size is arithmetic on sizes, and nothing else."""
    if len(text) > 2000:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and _FUNCTIONS.fullmatch(node.func.id)
        ):
            return False
        if isinstance(node, ast.Name) and not (
            _FUNCTIONS.fullmatch(node.id) or re.fullmatch(r"[a-z]{1,3}\d+", node.id)
        ):
            return False
        if isinstance(node, ast.Constant):
            plain = isinstance(node.value, bool | int | float)
            if not plain and not (isinstance(node.value, str) and _NAME.fullmatch(node.value)):
                return False
    return True


def _is_tree(tree: Any) -> bool:
    """Return whether a nesting of arguments is of tuples, lists and dicts with plain keys."""
    context = tree["context"] or ""
    plain = isinstance(context, str) and not re.search(r"[{}\\]", context)
    return tree["type"] in _TREES and plain and all(map(_is_tree, tree["children_spec"]))


class Program(nn.Module):
    """A program of torch.export. It has no training mode: it stays as it was exported."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.inner = inner
        self.name = name
        self.train(False)

    def train(self, mode: bool = True) -> Program:
        """Do nothing, whatever the mode: GraphModule.train() refuses to be called."""
        for module in self.modules():
            module.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, K) logits.

        Raises:
            HarnessError: the program takes no batch of this shape.
        """
        try:
            logits: Tensor = self.inner(images)
        except (AssertionError, RuntimeError) as error:
            first = str(error).strip().split("\n")[0]
            raise HarnessError(
                f"{self.name} does not take images {tuple(images.shape)}: {first}. Export it in "
                "evaluation mode with a free batch size: "
                "dynamic_shapes=({0: torch.export.Dim('batch')},)"
            ) from error
        return logits
