"""The kills of `make faults` are spread as they must be."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.aim import AIMED, ALL_RANKS, Tempo, draw

TEMPO = Tempo(steps=16, start_seconds=0.7, seconds=2.0, phases={})
MISSING = st.fixed_dictionaries({phase: st.integers(-3, 10) for phase in AIMED})


@given(st.randoms(use_true_random=False), MISSING, st.integers(1, 200), st.integers(0, 16))
def test_a_kill_is_aimed_only_at_what_is_short_of_kills_and_at_a_rank_that_has_it(
    random: Random, missing: dict[str, int], left: int, step: int
) -> None:
    aim = draw(random, missing, left, TEMPO, step)
    assert 0 <= aim.after_seconds <= TEMPO.left(step) <= TEMPO.seconds
    if aim.phase is not None:
        assert missing[aim.phase] > 0
        assert aim.rank == 0 or aim.phase in ALL_RANKS


@given(st.randoms(use_true_random=False), MISSING, st.integers(0, 16))
def test_every_kill_is_aimed_when_no_more_are_left_than_are_missing(
    random: Random, missing: dict[str, int], step: int
) -> None:
    left = sum(count for count in missing.values() if count > 0)
    if left:
        assert draw(random, missing, left, TEMPO, step).phase is not None
