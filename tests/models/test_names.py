"""Names that are known without torch."""

from sparta.models.names import NAMES, misspelt
from sparta.models.zoo import ZOO


def test_they_are_those_of_the_zoo() -> None:
    assert tuple(ZOO) == NAMES


def test_what_is_wrong_with_a_name() -> None:
    assert misspelt("deepfm") is None
    assert misspelt("mine:Mine") is None
    assert misspelt("deepfn") == "'deepfn' is no model; did you mean 'deepfm'?"
    assert misspelt("transformer") == f"'transformer' is no model; known: {', '.join(NAMES)}"
