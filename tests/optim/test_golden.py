"""The golden trajectories, reproduced by the one-process Helen in float64."""

from pathlib import Path

import pytest

from tests.replay_oracle import errors
from tests.trajectory import Trajectory

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("*.npz"))
DATA = {"kjt_values", "kjt_lengths", "kjt_step_offsets", "labels"}


def test_there_are_trajectories_of_both_kinds_and_of_every_base() -> None:
    files = [Trajectory.read(path) for path in FILES]
    assert sum(file.authors for file in files) == 3
    assert {file.hyper["base"] for file in files if not file.authors} == {
        "sgd",
        "lazy_adam",
        "rowwise_adagrad",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_tensor_of_every_step_is_reproduced(path: Path) -> None:
    """Tables, moments, accumulators, dense parameters, losses, and all that lies between the passes."""
    file = Trajectory.read(path)
    found = errors(file)
    assert set(found) == set(file.arrays) - DATA
    assert {key: error for key, error in found.items() if not error <= 1e-12} == {}
