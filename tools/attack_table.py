"""Run every attack of the libraries on digits and write the results into docs/attacks.md.

    python tools/attack_table.py             # everything, several minutes
    python tools/attack_table.py --only native
    python tools/attack_table.py foolbox:PGD art:DeepFool   # only these rows

The victim is the quick network on scikit-learn's digits, trained here. Slow attacks get fewer steps; the
table says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.datasets.data import load
from harness.evaluation.judge import judge
from harness.random import Draws, OpaqueDraws, Role
from harness.registry import attacks, models
from harness.targets.defended import Defended
from harness.targets.views import View
from harness.types import Batch, Defense, HarnessError, ThreatModel

DOCUMENT = Path(__file__).parent.parent / "docs" / "attacks.md"
IMAGES = 16
BALLS = {"linf": 0.2, "l2": 2.0}
SECONDS = 60
"""Processor time after which an attack is given up."""

REDUCED: dict[str, dict[str, Any]] = {
    "foolbox:BoundaryAttack": {"steps": 500},
    "foolbox:EADAttack": {"binary_search_steps": 7, "steps": 200},
    "foolbox:GaussianBlurAttack": {"steps": 100},
    "foolbox:HopSkipJumpAttack": {"steps": 6},
    "foolbox:L2CarliniWagnerAttack": {"binary_search_steps": 5, "steps": 100},
    "foolbox:LinearSearchBlendedUniformNoiseAttack": {"directions": 50, "steps": 100},
    "foolbox:LinearSearchContrastReductionAttack": {"steps": 100},
    "foolbox:SaltAndPepperNoiseAttack": {"steps": 200},
    "torchattacks:EADEN": {"binary_search_steps": 4, "max_iterations": 50},
    "torchattacks:EADL1": {"binary_search_steps": 4, "max_iterations": 50},
    "torchattacks:FAB": {"steps": 20},
    "torchattacks:SPSA": {"nb_iter": 10},
    "torchattacks:SparseFool": {"steps": 5},
    "torchattacks:Square": {"n_queries": 500},
    "art:BoundaryAttack": {"max_iter": 20},
    "art:CarliniLInfMethod": {"initial_const": 0.1, "largest_const": 2.0},
    "art:ElasticNet": {"binary_search_steps": 3, "max_iter": 20, "initial_const": 1.0},
    "art:HopSkipJump": {"init_eval": 20, "max_eval": 200, "max_iter": 3},
    "art:PixelAttack": {"max_iter": 50},
    "art:SignOPTAttack": {"max_iter": 10, "num_trial": 20, "query_limit": 1000},
    "art:SimBA": {"max_iter": 200},
    "art:ThresholdAttack": {"max_iter": 1},
    "art:UniversalPerturbation": {"max_iter": 1},
    "art:VirtualAdversarialMethod": {"max_iter": 1},
    "art:ZooAttack": {"max_iter": 10},
}
"""Fewer steps, so that the table is made in minutes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(Defense):
    """The classifier alone."""

    def transform(
        self, images: Tensor, draws: OpaqueDraws, auxiliary: nn.Module | None = None
    ) -> Tensor:
        return images


def victim() -> tuple[Defended, Batch]:
    """Train the quick network for a few seconds; return it with test images that it gets right."""
    train, test = load("digits", "train"), load("digits", "test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.get("small-cnn")(train.shape, len(train.classes))
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(12):
            for index in torch.randperm(len(train)).split(50):
                batch = train.batch(index)
                loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    defended = Defended(model, Plain(), len(train.classes)).frozen()
    whole = test.batch(slice(None))
    right = (model(whole.images).argmax(dim=1) == whole.labels).nonzero().squeeze(1)
    return defended, whole[right[:IMAGES]]


class OutOfTime(BaseException):
    """Raised when the time is up. It is no Exception, so that no library catches it."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds of processor time."""

    def stop(number: int, frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def row(name: str, summary: str, refusal: str | None, defended: Defended, batch: Batch) -> str:
    """Run one attack and return its line of the table."""
    if refusal is not None:
        return f"| `{name}` | – | – | – | – | – | – | refused: {refusal} |"
    settings = REDUCED.get(name, {})
    attack = attacks.get(name)(**settings)
    norm = attack.norms[0]
    threat = ThreatModel(epsilon=BALLS[norm], norm=norm)
    view = View(defended, batch, threat, attack.access)
    kind = f"{'fixed' if attack.bounded else 'minimum'}, {norm if attack.bounded else 'any'}"
    about = f"| `{name}` | {attack.access} | {kind} |"
    started = time.process_time()
    try:
        with limited(SECONDS):
            attack.check(view, threat)
            found = attack.perturb(view, batch, threat, Draws(0, batch.ids, Role.ATTACK)).images
    except OutOfTime:
        return f"{about} – | – | – | – | over {SECONDS} s {_written(settings)} |"
    except HarnessError as error:
        return f"{about} – | – | – | – | refused here: {_one_line(str(error))} |"
    except Exception as error:
        reason = f"{type(error).__name__}: {_one_line(str(error))}"
        return f"{about} – | – | – | – | fails: {reason} |"
    seconds = time.process_time() - started
    verdict = judge(defended, batch, found, threat, seed=0, draws=1, bounded=attack.bounded)
    robust = (verdict.adversarial[0] == batch.labels).float().mean().item()
    anywhere = (verdict.returned[0] == batch.labels).float().mean().item()
    invalid = int((verdict.invalid != 0).sum())
    below = robust if attack.bounded else anywhere
    result = "works" if below < 1 else "runs, fools nothing here"
    if invalid:
        result += f"; {invalid} of {len(batch)} flagged as invalid"
    note = getattr(attack.sheet, "note", "")
    words = "; ".join(part for part in (result, note, _written(settings)) if part)
    queries = view.evidence.forwards.float().mean().item()
    return (
        f"{about} {100 * robust:.0f} % | {verdict.l2.median().item():.2f} | {queries:,.0f} "
        f"| {seconds:.1f} | {words} |"
    )


def _written(settings: dict[str, Any]) -> str:
    return f"({', '.join(f'{key}={value}' for key, value in settings.items())})" if settings else ""


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "/")[:160]


def libraries(names: list[str]) -> list[str]:
    """Return the rows of the attacks named, or of all."""
    defended, batch = victim()
    rows = []
    for make in attacks.bridges().values():
        for name, summary, refusal in make.listing():  # type: ignore[attr-defined]
            if names and name not in names:
                continue
            rows.append(row(name, summary, refusal, defended, batch))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def native() -> list[str]:
    """Return a row for each registered attack, from what it declares."""
    rows = []
    for entry in attacks:
        make = entry.make
        norms = ", ".join(getattr(make, "norms", ()))
        kind = "fixed epsilon" if getattr(make, "bounded", True) else "minimum norm"
        access = getattr(make, "access", "as the attack inside")
        rows.append(f"| `{entry.name}` | {access} | {norms} | {kind} | {entry.summary} |")
    return rows


HEADS = {
    "native": "| attack | access | norms | kind | what it is |\n|---|---|---|---|---|",
    "libraries": "| attack | access | kind | accuracy at epsilon | median L2 | queries | CPU s | result |\n"
    "|---|---|---|---|---|---|---|---|",
}


def written(text: str, section: str, rows: list[str]) -> str:
    """Return the document with the section's table replaced."""
    start, end = f"<!-- {section}: start -->", f"<!-- {section}: end -->"
    table = "\n".join([start, HEADS[section], *rows, end])
    if start not in text or end not in text:
        raise SystemExit(f"{DOCUMENT.name} has no markers for {section}")
    return re.sub(f"{re.escape(start)}.*{re.escape(end)}", lambda _: table, text, flags=re.S)


def main() -> None:
    """Make the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="make the rows of these attacks only")
    parser.add_argument("--only", choices=sorted(HEADS))
    words = parser.parse_args()
    torch.set_num_threads(1)
    text = DOCUMENT.read_text(encoding="utf-8")
    if words.names:
        for line in libraries(words.names):
            start = line[: line.index("` |") + 3]
            text = re.sub(f"^{re.escape(start)}.*$", lambda _, line=line: line, text, flags=re.M)
        DOCUMENT.write_text(text, encoding="utf-8")
        return
    if words.only != "libraries":
        text = written(text, "native", native())
    if words.only != "native":
        text = written(text, "libraries", libraries([]))
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
