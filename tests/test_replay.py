"""`python -m tests.replay`: what it prints, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replay import main

GOLDEN = Path(__file__).parent / "golden"
PAPER = GOLDEN / "paper_f-jagged_lazy-adam_np1_xi0.0.npz"
AUTHORS = GOLDEN / "official_b-zipf_f64x_np0_b0.5.npz"


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    with np.load(PAPER) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(tmp_path / "file.npz", **arrays)
    return str(tmp_path / "file.npz")


def test_prints_the_largest_error_of_every_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(PAPER)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(lines) - 1} tensors, 0 above 1e-12"
    errors = dict(line.split() for line in lines[:-1])
    assert {"table2", "exp_avg_sq_W1", "loss2", "eps_table0", "N1"} <= set(errors)
    assert max(map(float, errors.values())) < 1e-12


@pytest.mark.parametrize("wrong", [1e-9, float("nan")])
def test_one_wrong_number_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: float) -> None:
    def change(arrays: dict[str, Any]) -> None:
        arrays["exp_avg_table1"][7, 3, 2] += wrong

    assert main([changed(tmp_path, change)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("above the tolerance")] == ["exp_avg_table1"]
    assert main([changed(tmp_path, change), "--tolerance", "1e-8"]) == (0 if wrong == 1e-9 else 1)


def test_another_radius_is_found(tmp_path: Path) -> None:
    assert main([changed(tmp_path, hyper(rho=0.05001))]) == 1


@pytest.mark.parametrize("options", [["--engine", "rows"], ["--ranks", "2"], ["--plan", "row_wise"]])
def test_the_published_codes_files_are_for_the_oracle(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(AUTHORS), *options]) == 2
    message = capsys.readouterr().err
    assert message == (
        f"{AUTHORS}: the published code's trajectory, which only --engine oracle reproduces; "
        "leave --ranks and --plan out\n"
    )


def test_no_ranks_are_no_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    for ranks in ("0", "-1"):
        assert main([str(PAPER), "--ranks", ranks]) == 2
        assert capsys.readouterr().err == f"--ranks {ranks}; it is 1 or more\n"


def test_the_oracle_has_neither_ranks_nor_plans(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(PAPER), "--engine", "oracle", "--ranks", "2"]) == 2
    assert capsys.readouterr().err.startswith("engine oracle is one process without a plan")


def drop(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda arrays: arrays.pop(key)


def put(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda arrays: arrays.__setitem__(key, np.asarray(value))


def cut(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda arrays: arrays.__setitem__(key, arrays[key][:-1])


def hyper(**settings: Any) -> Callable[[dict[str, Any]], Any]:
    def change(arrays: dict[str, Any]) -> None:
        meta = json.loads(str(arrays["meta_json"]))
        meta["hyper"] |= settings
        arrays["meta_json"] = np.array(json.dumps(meta))

    return change


def first_id_of_table_0(arrays: dict[str, Any]) -> None:
    arrays["kjt_values"][0] = 7


@pytest.mark.parametrize(
    "change",
    [
        drop("meta_json"),
        drop("kjt_lengths"),
        drop("table1"),
        drop("W2"),
        put("meta_json", "{"),
        put("meta_json", "[]"),
        put("meta_json", '{"variant": "PAPER", "hyper": {}}'),
        put("meta_json", '{"variant": "NEITHER"}'),
        put("labels", 1.0),
        put("kjt_values", ["a", "b"]),
        put("table0", np.zeros((21, 7, 5))),
        put("labels", np.zeros((20, 24), dtype=np.float32)),
        cut("kjt_values"),
        cut("kjt_step_offsets"),
        cut("b1"),
        cut("loss1"),
        put("loss1", np.zeros((20, 2))),
        hyper(base="lamb"),
        hyper(betas=[0.9]),
        hyper(rho="wide"),
        hyper(rho=-1.0),
        hyper(count_mode="epoch"),
        first_id_of_table_0,
    ],
)
def test_a_malformed_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], Any]
) -> None:
    assert main([changed(tmp_path, change)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "file.npz" in printed.err


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and then nothing", b"no archive"])
def test_what_is_no_archive_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "file.npz"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert str(path) in printed.err
