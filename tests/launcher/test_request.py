"""The launcher reads little of a command line, and reads it wherever it stands."""

from itertools import permutations
from pathlib import Path

import pytest

from sparta.launcher.request import Request, peek, wants_help
from sparta.models.errors import ConfigError


def test_the_order_of_the_words_does_not_matter() -> None:
    options = ["--ranks", "4", "--run-dir=d", "--set", "a.b=1"]
    words = [["run"], options, ["-v"], ["--split", "test"], ["--checkpoint", "last"]]
    expected = Request(Path("run"), Path("d"), 4, ("a.b=1",), True)
    for order in permutations(words):
        assert peek([word for group in order for word in group]) == expected


def test_unknown_words_are_the_services_business() -> None:
    request = peek(["run", "more.parquet", "--out", "scores.parquet", "--what-is-this"])
    assert request == Request(Path("run"), None, None, (), False)


def test_the_checkpoint_to_start_from_is_not_the_target() -> None:
    request = peek(["--from", "runs/a/checkpoints/step-000000100", "--resume", "job"])
    assert request == Request(Path("job"), None, None, (), False, resume=True)


def test_without_a_target_there_is_no_request() -> None:
    assert peek(["--ranks", "2"]) is None


def test_overrides_keep_their_order() -> None:
    request = peek(["job", "--set", "a=1", "--set", "a=2"])
    assert request is not None
    assert request.overrides == ("a=1", "a=2")


@pytest.mark.parametrize("ranks", ["0", "-1", "two", "1.5", ""])
def test_ranks_must_be_a_positive_number(ranks: str) -> None:
    with pytest.raises(ConfigError, match=f"--ranks {ranks}: not a number of processes"):
        peek(["job", f"--ranks={ranks}"])


def test_an_option_without_its_value_is_named() -> None:
    with pytest.raises(ConfigError, match="--ranks: expected one argument"):
        peek(["job", "--ranks"])


def test_help_is_found_anywhere() -> None:
    assert wants_help(["job", "--help"])
    assert wants_help(["-h"])
    assert not wants_help(["job"])
