"""The course of a study: what is run, in which order, what is not run again, what is said."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sparta.models.errors import ConfigError, DataError, SpartaError
from sparta.models.schema import load_schema
from sparta.service.arguments import parser
from sparta.service.compare.arguments import read
from sparta.service.compare.cells import Cell
from sparta.service.compare.result import collect
from sparta.service.compare.run import Part, alone, check, finals, go, grids, listed
from tests.service.compare import toys


def test_grids_come_first_then_every_seed_of_what_validation_chose(tmp_path: Path) -> None:
    folder, ran, said = toys.folder(tmp_path), list[str](), list[str]()
    go(folder, toys.whole(folder), toys.runner(folder, toys.better, ran), said.append)
    assert len(ran) == len(set(ran)) == 4 + 2 * 2 * 2
    assert [name.rpartition("-")[2] for name in ran[:4]] == ["s9"] * 4
    assert {name.rpartition("-")[0] for name in ran[4:] if "helen" in name} == {
        "toy-deepfm-helen-lr0.1-rho0.7",
        "toy-dcn-helen-lr0.1-rho0.7",
    }
    assert "tune 4/4 toy-deepfm-helen-lr0.1-rho0.7-s9: valid ." in said[3]
    assert "test" not in said[3]
    assert "final 8/8 " in said[-1]
    assert said[-1].endswith(", 1 s; about 0 s left")
    again: list[str] = []
    go(folder, toys.whole(folder), toys.runner(folder, toys.better, again), said.append)
    assert again == []


def test_what_is_done_is_not_run_again_wherever_it_was_killed(tmp_path: Path) -> None:
    for killed_after in range(12):
        place = tmp_path / str(killed_after)
        place.mkdir()
        folder, ran = toys.folder(place), list[str]()

        class Killed(Exception):  # noqa: N818
            pass

        def tell(line: str, folder=folder, ran=ran, limit=killed_after) -> None:  # type: ignore[no-untyped-def]
            if len(ran) > limit:
                raise Killed

        with pytest.raises(Killed):
            go(folder, toys.whole(folder), toys.runner(folder, toys.better, ran), tell)
        go(folder, toys.whole(folder), toys.runner(folder, toys.better, ran), lambda line: None)
        assert len(ran) == len(set(ran)) == 12


def test_a_result_that_nobody_took_note_of_is_taken_note_of(tmp_path: Path) -> None:
    folder, ran = toys.folder(tmp_path), list[str]()
    part = toys.whole(folder)
    for cell in grids(folder, part):
        toys.finish(folder, cell, toys.better(cell))
    go(folder, part, toys.runner(folder, toys.better, ran), lambda line: None)
    assert [name for name in ran if name.endswith("s9")] == []
    assert len(ran) == 8


def test_a_cell_that_diverged_is_not_run_again_and_a_grid_that_did_has_no_seeds(tmp_path: Path) -> None:
    folder, ran, said = toys.folder(tmp_path), list[str](), list[str]()
    wild = toys.runner(folder, lambda cell: None if cell.optimizer == "helen" else 1.0, ran)
    go(folder, toys.whole(folder), wild, said.append)
    assert len(ran) == 4 + 4
    assert "toy-deepfm-helen-lr0.1-rho0.5-s9: diverged (step 3: the loss is not finite)" in said[2]
    go(folder, toys.whole(folder), wild, said.append)
    assert len(ran) == 8
    assert list(listed(folder, toys.whole(folder)))[-1] == "8 cells done, 0 to do"


def test_a_part_is_run_and_the_rest_is_for_later(tmp_path: Path) -> None:
    folder, ran = toys.folder(tmp_path), list[str]()
    part = Part(("toy",), ("dcn",), ("helen",), ("tune",))
    go(folder, part, toys.runner(folder, toys.better, ran), lambda line: None)
    assert len(ran) == 2
    assert len(finals(folder, part)) == 2
    go(
        folder,
        Part(*toys.whole(folder).__dict__.values()),
        toys.runner(folder, toys.better, ran),
        lambda line: None,
    )
    assert len(ran) == len(set(ran)) == 12


def test_of_a_part_there_is_a_result_where_the_rest_has_no_dataset(tmp_path: Path) -> None:
    data = {"toy": {"job": "job.yaml"}, "elsewhere": {"job": "job.yaml", "set": {"data.path": "nowhere"}}}
    folder = toys.folder(tmp_path, data=data)
    part = replace(toys.whole(folder), data=("toy",))
    go(folder, part, toys.runner(folder, toys.better, []), lambda line: None)
    assert {group["data"] for group in collect(folder)["groups"]} == {"toy"}
    assert list(listed(folder, toys.whole(folder)))[-2] == "12 cells done, 4 to do"


def test_a_cell_that_left_no_result_is_named(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path)
    with pytest.raises(
        SpartaError, match=r"^toy-deepfm-adam-lr0\.1-s9: ended without a result in .*; run the study"
    ):
        go(folder, toys.whole(folder), lambda cells: ((cell, 1.0) for cell in cells), lambda line: None)


@pytest.mark.parametrize("error", [SpartaError("toy-deepfm-helen-lr0.1-rho0.5-s9: odd"), MemoryError()])
def test_a_cell_that_fails_keeps_no_other_from_being_run(tmp_path: Path, error: Exception) -> None:
    folder, ran, said = toys.folder(tmp_path), list[str](), list[str]()
    sound = toys.runner(folder, toys.better, ran)

    def run(cells: Sequence[Cell]) -> Iterator[tuple[Cell, float | Exception | None]]:
        for cell in cells:
            if cell.name == "toy-deepfm-helen-lr0.1-rho0.5-s9":
                yield cell, error
            else:
                yield from sound([cell])

    with pytest.raises(type(error)) as raised:
        go(folder, toys.whole(folder), run, said.append)
    assert raised.value is error
    assert len(ran) == 3 + 4, "Adam's seeds are trained, Helen's grid is not done"
    why = "odd" if str(error) else "MemoryError"
    assert f"toy-deepfm-helen-lr0.1-rho0.5-s9: failed ({why}), the others go on; about " in said[2]
    assert said[-1] == "1 of 8 cells failed; the same command runs them again"
    go(folder, toys.whole(folder), sound, said.append)
    assert len(ran) == len(set(ran)) == 12


def test_a_dry_run_tells_what_is_done_and_what_is_open(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path)
    part = toys.whole(folder)
    lines = list(listed(folder, part))
    assert lines[-2:] == [
        "0 cells done, 4 to do",
        "and 2 seeds for each of 4 choices that the grids have to make",
    ]
    assert lines[0] == "to do  tune   toy-deepfm-adam-lr0.1-s9"
    assert lines[1].startswith("  sparta train ")
    assert list(listed(folder, part, ("sparta", "submit", "-s", "slurm")))[1].startswith(
        "  sparta submit -s slurm "
    )
    go(folder, part, toys.runner(folder, toys.better), lambda line: None)
    lines = list(listed(folder, part))
    assert lines[-1] == "12 cells done, 0 to do"
    assert lines[0].startswith("done   tune   toy-deepfm-adam-lr0.1-s9: valid .")


def test_a_dry_run_needs_no_data(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path, data={"toy": {"job": "job.yaml", "synth": {"rows": 100}}})
    assert list(listed(folder, toys.whole(folder)))[-2] == "0 cells done, 4 to do"


def test_a_dry_run_refuses_a_cell_that_is_no_job(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path, models={"deepfm": {"set": {"model.nam": "x"}}})
    with pytest.raises(ConfigError, match=r"adam-lr0\.1-s9, with .*: model\.nam: unknown key"):
        next(listed(folder, toys.whole(folder)))


def test_what_would_be_refused_only_hours_later_is_refused_now(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path)
    check(folder, toys.whole(folder), ranks=1)
    for changes, complaint in (
        ({"set": {"train.ranks": 2}}, r"adam-lr0.1-s9: train.ranks 2, but a slot is one process"),
        ({"models": {"deepfm": {"set": {"model.nam": "x"}}}}, "model.nam: unknown key"),
    ):
        folder = toys.folder(tmp_path, **changes)
        with pytest.raises(ConfigError, match=complaint):
            check(folder, toys.whole(folder), ranks=1)
    folder = toys.folder(tmp_path, set={"train.ranks": 2})
    check(folder, toys.whole(folder))
    schema = load_schema(tmp_path / "data")
    schema.model_copy(update={"splits": {"train": 9, "test": 9}}).save(tmp_path / "data")
    with pytest.raises(ConfigError, match="the dataset has no valid split"):
        check(toys.folder_of(tmp_path), toys.whole(folder))
    (tmp_path / "data" / "schema.json").unlink()
    with pytest.raises(DataError, match="holds no schema"):
        check(toys.folder_of(tmp_path), toys.whole(folder))


def test_names_come_in_the_study_s_order_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    path = toys.write(tmp_path)
    _, part = read(
        parser().parse_args(["compare", str(path), "--models", "dcn,deepfm", "--optimizers", "helen"])
    )
    assert (part.models, part.optimizers, part.data) == (("deepfm", "dcn"), ("helen",), ("toy",))
    with pytest.raises(ConfigError, match="--data d: the study has toy"):
        read(parser().parse_args(["compare", str(path), "--data", "d,toy"]))
    with pytest.raises(ConfigError, match=r"--work s3:/b/x: a study works in a folder of this machine"):
        read(parser().parse_args(["compare", str(path), "--work", "s3://b/x"]))


def test_a_folder_is_one_study_s_at_a_time_and_sigterm_ends_it_as_ctrl_c(tmp_path: Path) -> None:
    folder = toys.folder(tmp_path)
    with (
        alone(folder),
        pytest.raises(ConfigError, match="another `sparta compare` is at work"),
        alone(folder),
    ):
        pass
    with pytest.raises(KeyboardInterrupt), alone(folder):
        signal.raise_signal(signal.SIGTERM)
    with alone(folder):
        pass
