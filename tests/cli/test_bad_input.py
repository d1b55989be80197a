"""More than a thousand malformed inputs: each ends with one message, exit status 2 (1 for damage), no
traceback, and a store that is as it was."""

from __future__ import annotations

import functools
import json
import shlex
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.cli.main import main
from harness.datasets import data
from harness.storage import store

RUN = shlex.split(
    "run --quiet --dataset digits --defense vanilla --attack fgsm --limit 6 --draws 1 --epochs 1 "
    "-T limit=30"
)


def malformed(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,  # the same inputs in every run of the tests
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture(autouse=True)
def quick_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits are read once."""
    cached = functools.cache(data.load)

    def load(name: str, split: Any, **words: Any) -> Any:
        return cached(name, split) if name == "digits" else original(name, split, **words)

    original = data.load
    monkeypatch.setattr(data, "load", load)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one record."""
    folder = tmp_path_factory.mktemp("finished") / "store"
    done = CliRunner().invoke(main, [*RUN, "--results", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(arguments: list[str], status: int = 2) -> Result:
    """Run the command line; it must fail as promised."""
    done = CliRunner().invoke(main, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), (
        arguments,
        done.exception,
    )
    assert done.exit_code == status, (arguments, done.exit_code, done.output)
    assert "Traceback" not in done.output
    if status == 2 and "failure: " not in done.output:
        assert done.output.lower().count("error: ") >= 1, (arguments, done.output)
        body = done.output[done.output.lower().index("error: ") :]
        assert 0 < len(body.strip().splitlines()) <= 4, (arguments, done.output)
    return done


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
letters = st.text(string.ascii_lowercase, min_size=1, max_size=8)
no_number = words.filter(lambda text: not any(c.isdigit() for c in text)).filter(
    lambda text: text.strip().lower() not in ("inf", "nan", "infinity", "+inf", "-inf", "")
)
no_name = words.map(lambda text: "no-such-" + text.replace(":", "").replace(".py", ""))
too_small = st.integers(max_value=0).map(str)
counts = st.one_of(too_small, no_number.map(lambda text: "x" + text), st.just("1.5"))
broken_spec = st.one_of(
    st.sampled_from(["fgsm(", "fgsm)", "pgd(steps=3", "pgd(steps)", "pgd(steps=3))", "(", ")", ""]),
    letters.map(lambda text: f"pgd({text}zz=1)"),
    no_number.map(lambda text: f"pgd(steps=x{text})".replace("(", "", 1)),
    st.integers(max_value=0).map(lambda steps: f"pgd(steps={steps})"),
    st.just("transfer"),
    st.just("fgsm(pgd)"),
    st.just("pgd(keep=worst)"),
)
command_lines = st.one_of(
    st.tuples(st.sampled_from(["--defense", "--attack", "--dataset", "--model"]), no_name),
    st.tuples(st.sampled_from(["--defense", "--attack"]), broken_spec),
    st.tuples(st.just("--model"), broken_spec.filter(bool)),  # empty: the default
    st.tuples(
        st.sampled_from(["--limit", "--draws", "--steps", "--eot", "--epochs", "--batch-size"]),
        counts,
    ),
    st.tuples(st.just("--max-queries"), counts),
    st.tuples(st.just("--seed"), no_number.map(lambda text: "x" + text)),
    st.tuples(
        st.just("--epsilon"),
        st.one_of(st.sampled_from(["nan", "inf", "-1", "1/0", "-8/255", "1e999", "8/"]), no_number),
    ),
    st.tuples(st.just("--memory"), st.one_of(no_number, st.sampled_from(["0", "-1GB", "1KB"]))),
    st.tuples(st.just("--device"), no_name),
    st.tuples(st.sampled_from(["--norm", "--training"]), no_name),
    st.tuples(st.sampled_from(["-A", "-D", "-M", "-T"]), words.map(lambda t: t.replace("=", ""))),
    st.tuples(st.sampled_from(["-A", "-D", "-M", "-T"]), letters.map(lambda t: f"no_{t}=1")),
    st.tuples(
        st.just("-T"),
        st.sampled_from(
            shlex.split(
                "epochs=0 epochs=x batch_size=-1 learning_rate=-1 learning_rate=nan optimiser=x "
                "milestones=x limit=0 augment=x warmup=x limit="
            )
        ),
    ),
    st.tuples(letters.map(lambda text: f"--no-such-{text}"), words),
)


@given(line=command_lines)
@example(line=("--attack", "/etc/passwd:x"))
@example(line=("--defense", "../../x.py:Y"))
@malformed(450)
def test_command_lines(finished: Path, line: tuple[str, str]) -> None:
    before = listing(finished)
    flag, value = line
    given_words = [flag, value] if flag.startswith("-") and len(flag) == 2 else [f"{flag}={value}"]
    base = list(RUN)
    if flag in ("--defense", "--attack"):  # instead of the good one
        place = base.index(flag)
        del base[place : place + 2]
    refused([*base, *given_words, "--results", str(finished)])
    assert listing(finished) == before


@given(
    word=st.one_of(letters.map(lambda text: f"no-{text}"), st.just("")),
    command=st.sampled_from(["", "list", "data", "table --format", "data check"]),
)
@malformed(60)
def test_commands(word: str, command: str) -> None:
    refused([*command.split(), word])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def checked(value: Any) -> bytes:
    """A file of the store with a good checksum around any value."""
    try:
        return store.render_json(value)
    except (msgspec.MsgspecError, TypeError, ValueError, UnicodeEncodeError, OverflowError):
        return b""


def altered(record: bytes) -> st.SearchStrategy[bytes]:
    """Records with a good checksum in which one field is missing, or is something else."""
    value = json.loads(record)["value"]

    def alter(name: str, new: Any, drop: bool) -> bytes:
        changed = {key: part for key, part in value.items() if key != name or not drop}
        return checked(changed if drop else {**changed, name: {"no": new}})

    needed = ("key", "cell", "classes", "count", "ids", "clean", "robust", "returned")
    return st.builds(alter, st.sampled_from(needed), JSON, st.booleans())


@given(data=st.data())
@malformed(200)
def test_records(finished: Path, tmp_path: Path, data: st.DataObject) -> None:
    (good,) = (finished / "records").iterdir()
    content = data.draw(
        st.one_of(
            st.binary(max_size=40),
            JSON.map(checked),
            JSON.map(lambda value: json.dumps(value).encode("utf-8", "replace")),
            altered(good.read_bytes()),
            st.integers(0, len(good.read_bytes()) - 2).map(lambda n: good.read_bytes()[:n]),
        )
    )
    folder = tmp_path / "store"
    (folder / "records").mkdir(parents=True, exist_ok=True)
    (folder / "records" / good.name).write_bytes(content)
    done = refused(["table", "--results", str(folder)], status=1)
    assert f"{folder / 'records' / good.name} is damaged: " in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert listing(folder) == {f"records/{good.name}": content}


def safetensors_like(good: bytes) -> st.SearchStrategy[bytes]:
    """Random bytes, cut files, changed headers, other tensors under a good checksum."""
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])

    def with_header(value: Any) -> bytes:
        text = json.dumps(value).encode("utf-8", "replace")
        return len(text).to_bytes(8, "little") + text + good[8 + length :]

    def renamed(name: str, new: Any) -> bytes:
        return with_header({**header, name: new})

    return st.one_of(
        st.binary(max_size=60),
        st.integers(0, len(good) - 1).map(lambda n: good[:n]),
        st.integers(0, 2**64 - 1)
        .map(lambda n: n.to_bytes(8, "little") + good[8:])
        .filter(lambda content: content != good),
        JSON.map(with_header),
        st.builds(renamed, st.sampled_from(sorted(header)), JSON),
        st.binary(max_size=30).map(lambda junk: b"\x80\x04" + junk),
    )


@pytest.mark.parametrize("kind", ["checkpoints/*.safetensors", "progress/*/*.safetensors"])
@given(data=st.data())
@malformed(100)
def test_weights_and_images(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    (good,) = finished.glob(kind)
    original = good.read_bytes()
    content = data.draw(safetensors_like(original))
    (record,) = (finished / "records").iterdir()
    kept = record.read_bytes()
    before = {name for name in listing(finished) if not name.startswith("timings")}
    record.unlink()
    good.write_bytes(content)
    try:
        done = refused([*RUN, "--results", str(finished)], status=1)
        assert f"{good} is damaged: " in done.output
        (aside,) = good.parent.glob("*.damaged-*")
        assert aside.read_bytes() == content
        aside.unlink()
    finally:
        for failure in finished.glob("failures/*"):
            failure.unlink()
        good.write_bytes(original)
        record.write_bytes(kept)
    assert {name for name in listing(finished) if not name.startswith("timings")} == before


def test_images_of_other_shapes_under_a_good_checksum(finished: Path) -> None:
    """Not random damage: a batch that says what it is not."""
    (good,) = finished.glob("progress/*/*.safetensors")
    original = good.read_bytes()
    tensors, metadata = store.read_tensors(good)
    (record,) = (finished / "records").iterdir()
    kept = record.read_bytes()
    wrong = [
        {"images": torch.zeros(6, 1, 27, 28)},
        {"images": torch.zeros(6, 1, 28, 28, dtype=torch.float64)},
        {"positions": torch.arange(6) + 1000},
        {"positions": torch.zeros(6, dtype=torch.int64)},
        {"positions": torch.arange(6).float()},
        {"evidence.forwards": torch.zeros(5)},
        {"trace.3": torch.zeros(2, 5)},
        {"trace.x": torch.zeros(1, 6)},
    ]
    for change in wrong:
        record.unlink()
        store.write_tensors(good, {**tensors, **change}, metadata)
        refused([*RUN, "--results", str(finished)], status=1)
        assert record.read_bytes() == kept and good.exists()
    store.write_tensors(good, tensors, {**metadata, "generation": "another"})
    record.unlink()
    assert "a batch of another attack" in refused([*RUN, "--results", str(finished)], 1).output
    for aside in good.parent.glob("*.damaged-*"):
        aside.unlink()
    good.write_bytes(original)


BROKEN_PLUGINS = [
    "class Guest: pass",
    "Guest = 3",
    "def Guest(): raise ValueError('no')",
    "def Guest(): raise RuntimeError('no\\nno')",
    "def Guest(needed): return needed",
    "raise SystemExit(0)",
    "raise SystemExit('bye')",
    "import no_such_module",
    "1 / 0",
    "def f(): return f()\nf()",
    "(" * 300 + ")" * 300,
    "\0",
    "class Guest(__import__('harness.types', fromlist=['x']).Attack): pass",
    "from harness.types import Attack\nclass Guest(Attack):\n"
    "    def perturb(self, *words): return 1\n    source = property(lambda self: 1 / 0)",
]


@given(
    text=st.one_of(st.sampled_from(BROKEN_PLUGINS), words.map(lambda text: f"{text} ???")),
    kind=st.sampled_from(["--attack", "--defense", "--model"]),
)
@malformed(140)
def test_plugin_files(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, text: str, kind: str
) -> None:
    path = tmp_path_factory.mktemp("plugin") / "guest.py"
    path.write_text(text, encoding="utf-8")
    before = listing(finished)
    base = list(RUN)
    if kind in base:
        place = base.index(kind)
        del base[place : place + 2]
    refused([*base, kind, f"{path}:Guest", "--results", str(finished)])
    # A model is made once the run has begun: then it leaves its reason, and nothing else.
    notes = {*finished.glob("failures/*"), *finished.glob("matrices/*")}
    for note in notes:
        if str(note.relative_to(finished)) not in before:
            note.unlink()
    assert listing(finished) == before


TABLE = 'kind = "table"\ntitle = "T"\ncaption = "C"\nheads = ["Method"]\n'
TABLE += '[defaults]\ndataset = "digits"\nattack = "fgsm"\n[[columns]]\ntitle = "Accuracy"\n'
TABLE += '[[rows]]\nlabels = ["a"]\ndefense = "vanilla"\n'


@given(
    text=st.one_of(
        words.map(lambda text: f"{text} ???"),
        letters.map(lambda text: TABLE + f"no_{text} = 1\n"),
        st.sampled_from(["kind", "title", "caption", "dataset", "defense", "labels"]).flatmap(
            lambda key: JSON.filter(lambda value: not isinstance(value, str | list)).map(
                lambda value: TABLE.replace(f"{key} = ", f"{key} = {json.dumps(value)} #")
            )
        ),
        no_name.map(lambda name: TABLE.replace('"vanilla"', json.dumps(name))),
        st.integers(0, len(TABLE) - 30).map(lambda n: TABLE[:n] + "["),
        st.sampled_from(["../x", "a/b", "", "..", "/etc/x"]).map(
            lambda name: TABLE.replace('"vanilla"', json.dumps(name))
        ),
    )
)
@malformed(150)
def test_protocol_files(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("protocol") / "mine.toml"
    path.write_text(text, encoding="utf-8")
    before = listing(finished)
    refused(["reproduce", str(path), "--profile", "smoke", "--results", str(finished), "--quiet"])
    assert listing(finished) == before
