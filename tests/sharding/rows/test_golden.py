"""The trajectories of Algorithm 1 in float64, on the sharded engine in float32."""

from pathlib import Path

import pytest

from tests.pool import Pool
from tests.replay import TOLERANCES
from tests.replay_rows import PLANS, check, replay
from tests.trajectory import Trajectory, TrajectoryError

FILES = sorted((Path(__file__).parents[2] / "golden").glob("paper_*.npz"))


def allowed(path: Path, ranks: int, plan: str) -> bool:
    try:
        check(Trajectory.read(path), ranks, plan)
    except TrajectoryError:
        return False
    return True


CASES = [
    (path, ranks, plan) for path in FILES for ranks in (1, 2) for plan in PLANS if allowed(path, ranks, plan)
]


@pytest.mark.parametrize(
    "path, ranks, plan", CASES, ids=[f"{path.stem}-{ranks}-{plan}" for path, ranks, plan in CASES]
)
def test_the_sharded_engine_replays_algorithm_1(pool: Pool, path: Path, ranks: int, plan: str) -> None:
    errors = pool.run(ranks, replay, path, plan, local_ranks=ranks)[0]
    assert {"loss1", "loss2", "table0", "table2", "W1", "eps_table1", "N2"} <= set(errors)
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCES["rows"]}
    assert not wrong


def test_there_is_a_case_for_every_file_and_both_numbers_of_ranks() -> None:
    assert len(FILES) == 6
    assert {(path.stem, ranks) for path, ranks, _ in CASES} == {
        (path.stem, ranks) for path in FILES for ranks in (1, 2)
    }
