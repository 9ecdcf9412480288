"""The command line: help for every verb, mistakes in one line, tracebacks only on demand."""

import subprocess
import sys
from pathlib import Path

import pytest

from sparta.service.__main__ import VERBS, main
from sparta.service.arguments import parser
from tests.service.compare import toys
from tests.service.refusal import refused, sparta


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_the_verb_and_all_its_arguments(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: sparta {verb} ")
    assert "--verbose" in out
    assert err == ""


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n    {verb}" in out for verb in VERBS)


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "the following arguments are required: VERB; see `sparta --help`"),
        (["trian"], "argument VERB: invalid choice: 'trian'"),
        (["train"], "the following arguments are required: job; see `sparta train --help`"),
        (
            ["train", "job.yaml", "--ranks"],
            "argument --ranks: expected one argument; see `sparta train --help`",
        ),
        (["train", "job.yaml", "--ranks", "0"], "argument --ranks: '0' is no whole number above 0"),
        (["train", "job.yaml", "--ranks", "two"], "argument --ranks: 'two' is no whole number above 0"),
        (["train", "job.yaml", "--epochs", "3"], "unrecognized arguments: --epochs 3"),
        (["train", "job.yaml", "--rank", "3"], "unrecognized arguments: --rank 3"),
        (["check", "job.yaml", "--set"], "argument --set: expected one argument"),
        (["plan", "job.yaml", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["plan", "job.yaml", "--memory-gb", "-1"], "argument --memory-gb: '-1' is no number above 0"),
        (["plan", "job.yaml", "--memory-gb", "nan"], "argument --memory-gb: 'nan' is no number above 0"),
        (["plan", "job.yaml", "--memory-gb", "much"], "argument --memory-gb: 'much' is no number above 0"),
        (["prepare", "spec.yaml"], "the following arguments are required: --out"),
        (["synth", "--out", "x", "--rows", "-5"], "argument --rows: '-5' is no whole number above 0"),
        (["synth", "--out", "x", "--seed", "-5"], "--seed -5 is negative"),
        (["evaluate"], "the following arguments are required: run; see `sparta evaluate --help`"),
        (["checkpoint", "list"], "the following arguments are required: run; see `sparta checkpoint --help`"),
        (
            ["checkpoint", "lst", "run"],
            "argument what: 'lst' is none of list, verify, export, the nearest is list",
        ),
        (["evaluate", "run", "--checkpoint", "bset"], "argument --checkpoint: invalid choice: 'bset'"),
        (["predict", "run"], "the following arguments are required: file, --out"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sparta", *words])
    assert said in refused(tmp_path, *words, code=2)


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_shows_the_traceback_and_then_the_line(flag: str, tmp_path: Path) -> None:
    code, out, err = sparta("check", tmp_path / "nowhere.yaml", flag)
    assert (code, out) == (2, "")
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.splitlines()[-1].startswith(f"error: {tmp_path / 'nowhere.yaml'}: No such file")


def test_ctrl_c_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "check", interrupted)
    assert sparta("check", tmp_path / "job.yaml") == (130, "", "")


def test_every_verb_of_the_parser_is_there() -> None:
    action = next(action for action in parser()._actions if action.dest == "verb")
    assert list(action.choices or ()) == list(VERBS)


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sparta.service", "compare", str(toys.write(tmp_path)), "--dry-run"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    running.stdout.close()
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (141, "")
