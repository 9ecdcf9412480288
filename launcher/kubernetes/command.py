"""What a rendered command line says: torchrun with its options, then -m sparta.service VERB ARGUMENTS."""

from collections.abc import Sequence

SERVICE = "sparta.service"


def option(command: Sequence[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value`, whichever way its words are joined; None without it."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        key, equals, value = word.partition("=")
        if key.replace("_", "-") == name:
            return value if equals else following
    return None


def verb(command: Sequence[str]) -> str | None:
    """The verb of the service that the ranks run; None if they run something else."""
    at = command.index(SERVICE) + 1 if SERVICE in command else len(command)
    return command[at] if at < len(command) else None


def ranks_per_node(command: Sequence[str], gpus: int) -> int:
    """Ranks that torchrun starts in one pod; without a number, one a GPU."""
    said = option(command, "--nproc-per-node") or "1"
    return int(said) if said.isdecimal() else max(1, gpus)


def run_name(command: Sequence[str], default: str) -> str:
    """The name of the run directory, by which its metrics are told apart."""
    return (option(command, "--run-dir") or default).rstrip("/").rpartition("/")[2]
