from __future__ import annotations

import inspect
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.random import (
    Draws,
    OpaqueDraws,
    Role,
    combine,
    content_ids,
    mix,
    mix_tensor,
    permutation,
)

GOLDEN = 0x9E3779B97F4A7C15
# The first outputs of SplitMix64 from seed 1234567, as its reference implementation prints them.
REFERENCE = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)


def draws(ids: list[int], role: Role = Role.SCORE, **place: int) -> Draws:
    return Draws(7, torch.tensor(ids), role, **place)


def test_the_finaliser_gives_the_reference_sequence() -> None:
    assert tuple(mix(1234567 + k * GOLDEN) for k in (1, 2, 3, 4)) == REFERENCE


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_tensor_and_integer_finalisers_agree(values: list[int]) -> None:
    found = mix_tensor(torch.tensor(values, dtype=torch.int64)).tolist()
    assert [value % 2**64 for value in found] == [mix(value) for value in values]


def test_a_sample_draws_the_same_in_any_batch_and_order() -> None:
    whole = draws(list(range(100))).bernoulli(0.5, 3, 5)
    assert torch.equal(draws([42]).bernoulli(0.5, 3, 5)[0], whole[42])
    assert torch.equal(draws([99, 3, 42]).bernoulli(0.5, 3, 5), whole[[99, 3, 42]])
    part = draws(list(range(100)))[torch.tensor([5, 1])]
    assert torch.equal(part.bernoulli(0.5, 3, 5), whole[[5, 1]])


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    assert torch.equal(draws([1, 2]).uniform(10)[:, :7], draws([1, 2]).uniform(7))


def test_places_share_no_stream() -> None:
    seen = [
        draws([1], role, step=step, draw=draw).bits(4, lane=lane)
        for role in Role
        for step in (0, 1)
        for draw in (0, 1)
        for lane in ("", "mask")
    ]
    words = torch.cat(seen).flatten().tolist()
    assert len(set(words)) == len(words)


def test_uniform_numbers_are_uniform() -> None:
    numbers = draws(list(range(1000))).uniform(100).flatten()
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    # 99 degrees of freedom: mean 99, standard deviation 14.
    assert 99 - 5 * 14 < chi_square < 99 + 5 * 14
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1


def test_neighbouring_samples_and_positions_do_not_correlate() -> None:
    numbers = draws(list(range(2000))).uniform(50)
    for one, other in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        pair = torch.stack((one.flatten(), other.flatten()))
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(one.numel())


def test_normal_moments() -> None:
    numbers = draws(list(range(200))).normal(500).double()
    assert abs(float(numbers.mean())) < 0.02
    assert abs(float(numbers.std()) - 1) < 0.02
    assert abs(float((numbers**4).mean()) - 3) < 0.15


def test_bernoulli_takes_a_probability_for_each_sample() -> None:
    shares = draws([1, 2, 3]).bernoulli(torch.tensor([0.0, 0.3, 1.0]), 20_000).float().mean(1)
    assert shares[0] == 0 and shares[2] == 1 and abs(float(shares[1]) - 0.3) < 0.02


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(0, 2**62))
def test_a_permutation_is_one(count: int, seed: int) -> None:
    order = permutation(seed, count, role=Role.SHUFFLE, step=3)
    assert torch.equal(order.sort().values, torch.arange(count))


def test_integers_stay_below_their_bound() -> None:
    numbers = draws(list(range(50))).integers(9, 200)
    assert int(numbers.min()) == 0 and int(numbers.max()) == 8


def test_content_ids_follow_pixels_on_the_8_bit_grid() -> None:
    images = torch.randint(0, 256, (4, 1, 5, 5)).float() / 255
    assert torch.equal(content_ids(images), content_ids(images + 1e-4 * (images < 0.9)))
    changed = images.clone()
    changed[2, 0, 0, 0] = 1 - changed[2, 0, 0, 0].round()
    assert (content_ids(changed) != content_ids(images)).tolist() == [False, False, True, False]


@pytest.mark.parametrize("parts", [((1, 2), (2, 1)), ((0,), (0, 0)), ((5,), (6,))])
def test_combine_depends_on_values_order_and_number(parts: tuple[tuple[int, ...], ...]) -> None:
    assert combine(*parts[0]) != combine(*parts[1])


def test_a_coin_falls_as_the_uniform_number_decides() -> None:
    place = draws(list(range(300)))
    for probability in (0.0, 0.1, 1 / 3, 0.5, 0.42, 1 - 1e-9, 1.0):
        wanted = place.uniform(1, 9, 9) < probability
        assert torch.equal(place.bernoulli(probability, 1, 9, 9), wanted)
    assert place[:0].bernoulli(0.5, 1, 9, 9).shape == (0, 1, 9, 9)


def test_the_unnamed_lane_never_changes() -> None:
    """The splits of datasets hang on it, and every digest on the splits."""
    first = Draws(3, torch.tensor([5]), Role.SHUFFLE, step=2, draw=1).bits(2)
    keys = mix(mix(5) + combine(3, Role.SHUFFLE, 0, 2, 1))
    assert [word % 2**64 for word in first[0].tolist()] == [mix(keys + k * GOLDEN) for k in (1, 2)]


# --- what a defense is given ----------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["", "mask"])
def test_opaque_draws_give_the_same_numbers(lane: str) -> None:
    place = draws([4, 9, 2], step=3, draw=1)
    seen = place.opaque()
    assert len(seen) == 3
    assert torch.equal(seen.uniform(2, 5, lane=lane), place.uniform(2, 5, lane=lane))
    assert torch.equal(seen.normal(7, lane=lane), place.normal(7, lane=lane))
    assert torch.equal(seen.integers(9, 7, lane=lane), place.integers(9, 7, lane=lane))
    assert torch.equal(seen.bernoulli(0.3, 7, lane=lane), place.bernoulli(0.3, 7, lane=lane))
    assert torch.equal(seen.bits(3, lane=lane), place.bits(3, lane=lane))


@pytest.mark.parametrize(
    "name", ["seed", "ids", "role", "step", "draw", "at", "opaque", "__dict__", "__getitem__"]
)
def test_opaque_draws_tell_nothing(name: str) -> None:
    with pytest.raises(AttributeError):
        getattr(draws([1]).opaque(), name)


def reachable(value: Any, depth: int = 4) -> list[Any]:
    """Return all plain values that can be reached from an object by attributes, slots and closures."""
    if depth == 0 or isinstance(value, str | bytes | type) or inspect.ismodule(value):
        return []
    if isinstance(value, torch.Tensor):
        return value.flatten().tolist()
    if isinstance(value, int | float):
        return [value]
    found = []
    for name in dir(value):
        if name in {"__class__", "__doc__", "__globals__", "__builtins__", "__func__"}:
            continue
        part = getattr(value, name, None)
        if name == "__closure__" and part:
            part = [cell.cell_contents for cell in part]
        for each in part if isinstance(part, list | tuple) else [part]:
            if not name.startswith("__") or name == "__closure__" or name == "__self__":
                found += reachable(each, depth - 1)
    return found


def test_no_part_of_the_place_can_be_reached() -> None:
    place = Draws(914_117, torch.tensor([915_113]), Role.SCORE, step=916_103, draw=917_101)
    secret = {914_117, 915_113, 916_103, 917_101}
    assert secret <= set(reachable(place))  # the search does find what is there
    assert not secret & set(reachable(place.opaque()))
    assert not any(str(number) in repr(place.opaque()) for number in secret)


def test_opaque_draws_are_neither_copied_nor_pickled() -> None:
    with pytest.raises(TypeError, match="draw the numbers now"):
        pickle.dumps(draws([1]).opaque())


def test_roles_look_alike_to_a_defense() -> None:
    kinds = {type(draws([1], role).opaque()) for role in Role}
    assert kinds == {OpaqueDraws}
