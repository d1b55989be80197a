"""The simulated cluster: schedules against what is known of any list schedule."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster import Assumed, Graph, Task, longest, schedule
from harness.paper import expansion, protocol


def task(seconds: float, *after: int) -> Task:
    return Task("attack", "", seconds, list(after), 0.0)


@st.composite
def graphs(draw: st.DrawFn) -> list[Task]:
    tasks = []
    for index in range(draw(st.integers(1, 12))):
        before = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        tasks.append(task(draw(st.integers(1, 20)), *before))
    return tasks


@given(tasks=graphs(), gpus=st.integers(1, 5))
def test_a_schedule_keeps_grahams_bounds(tasks: list[Task], gpus: int) -> None:
    """Graham 1966: work/m and the critical path bound it from below, their sum from above."""
    left, chain = longest(tasks)
    total, critical = sum(each.seconds for each in tasks), left[chain[0]]
    assert critical == max(left) == sum(tasks[index].seconds for index in chain)
    assert all(a in tasks[b].after for a, b in itertools.pairwise(chain))
    for order in (range(len(tasks)), [-value for value in left]):
        took = schedule(tasks, gpus, order)
        assert max(critical, total / gpus) <= took + 1e-9
        assert took <= total / gpus + critical * (1 - 1 / gpus) + 1e-9
    assert schedule(tasks, 1, range(len(tasks))) == total


def test_the_order_decides_who_goes_first() -> None:
    tasks = [task(1), task(1), task(2)]
    assert schedule(tasks, 2, [0, 1, 2]) == 3
    assert schedule(tasks, 2, [1, 2, 0]) == 2


def test_the_graph_of_a_table_trains_once_and_attacks_in_parts() -> None:
    profile = protocol.profile("paper")
    cells = expansion.unique(expansion.expand(protocol.load("table7"), profile))
    assumed = Assumed(rate=10_000, factor=50, start=0.0)
    one, eight = (Graph(cells, gpus, assumed).tasks for gpus in (1, 8))
    kinds = [[each.kind for each in tasks] for tasks in (one, eight)]
    assert kinds[0].count("training") == kinds[1].count("training")
    assert kinds[0].count("training") == len(
        {each.title for each in one if each.kind == "training"}
    )
    assert kinds[0].count("scoring") == len(cells)
    assert kinds[1].count("attack") == 8 * kinds[0].count("attack")
    work = [sum(each.seconds for each in tasks) for tasks in (one, eight)]
    assert work[0] == pytest.approx(work[1])
    twice = Graph(cells, 1, Assumed(rate=5_000, factor=25, start=0.0)).tasks
    assert sum(each.seconds for each in twice) == pytest.approx(2 * work[0])
