"""Ids and offsets that lead outside of their tables are refused before anything follows them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparta.optim.rows.group import Bags
from sparta.sharding.rows.check import Bounds


def bags(ids: list[int], lengths: list[int]) -> Bags:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Bags(torch.tensor(ids, dtype=torch.int64), offsets)


def bounds(rows: list[int]) -> Bounds:
    return Bounds(rows, torch.device("cpu"))


@given(st.data())
def test_what_is_within_passes_and_one_that_is_not_is_named(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    samples = data.draw(st.integers(1, 4))
    sizes = st.lists(st.integers(0, 3), min_size=samples, max_size=samples)
    lengths = [data.draw(sizes) for _ in rows]
    features = [feature for feature, of in enumerate(lengths) for _ in range(sum(of))]
    ids = [data.draw(st.integers(0, rows[feature] - 1)) for feature in features]
    flat = [length for of in lengths for length in of]
    bounds(rows).check(bags(ids, flat))
    if ids:
        place = data.draw(st.integers(0, len(ids) - 1))
        feature = features[place]
        beyond = st.sampled_from([rows[feature], rows[feature] + 1, 2**62, -1, -(2**63)])
        ids[place] = data.draw(beyond)
        told = rf"id {ids[place]} of feature {feature} of {len(rows)} is out of bounds.* 0 to {rows[feature] - 1};"
        with pytest.raises(RuntimeError, match=told):
            bounds(rows).check(bags(ids, flat))


@pytest.mark.parametrize(
    "lengths", [[2, 2, 0, 0], [1, 1, 0, 0], [4, -1, 0, 0], [-1, 4, 0, 0], [2**62, 3, 0, 0]]
)
def test_offsets_rise_from_0_to_the_number_of_ids(lengths: list[int]) -> None:
    with pytest.raises(RuntimeError, match="5 offsets of 2 features do not rise from 0 to the 3 ids"):
        bounds([9, 9]).check(bags([1, 2, 3], lengths))
    for rows, offsets in (([9], [1, 1]), ([9, 9], [0, 1]), ([9, 9], [0, 0, 1, 1])):
        with pytest.raises(RuntimeError, match="do not rise"):
            bounds(rows).check(Bags(torch.tensor([1]), torch.tensor(offsets)))


def test_every_id_has_a_weight_or_none_has() -> None:
    ids = bags([1, 2, 3], [1, 2])
    for count in (2, 4):
        with pytest.raises(RuntimeError, match=f"{count} weights of 3 ids"):
            bounds([9]).check(replace(ids, weights=torch.ones(count)))
    bounds([9]).check(replace(ids, weights=torch.ones(3)))


def test_nothing_is_within_everything() -> None:
    bounds([3, 4]).check(bags([], [0, 0]))
    bounds([3, 4]).check(bags([], []))
    bounds([]).check(bags([], []))
