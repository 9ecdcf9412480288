"""What models are called; read where no torch is loaded, as by the launcher."""

from collections.abc import Sequence
from difflib import get_close_matches

NAMES = ("dnn", "wide_deep", "pnn", "deepfm", "dcn", "dcn_v2", "dlrm")


def misspelt(name: str) -> str | None:
    """What is wrong with the name of a model; None if nothing, or if it says a module of its own."""
    return None if ":" in name or name in NAMES else f"{name!r} is no model{nearest(name, NAMES)}"


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a complaint about `word`: what was probably meant, or all there is."""
    near = get_close_matches(word, known, 1, 0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
