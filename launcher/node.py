"""torchrun on one machine of a cluster, whose exit code says why: the ranks' own, not always 1.

`python -m sparta.launcher.node ARGUMENTS` takes the arguments of `python -m torch.distributed.run`; the host of
`--rdzv-endpoint` may be `env:NAME`, a variable in which the scheduler says who is the first machine. What a rank
refuses (a bad job, bad data, a plan that does not fit) is not tried again, neither here nor, by the exit code,
by the scheduler (a Kubernetes podFailurePolicy reads it).
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence

from sparta.launcher.agent import exit_codes, install
from sparta.models.errors import ConfigError, DataError, PlanError
from sparta.service.job_text import ENVIRONMENT

REFUSED = {error.exit_code for error in (ConfigError, DataError, PlanError)}
"""Exit codes of a rank that would say the same again."""


class UnlessRefused:
    """Start the ranks again unless one has refused the job."""

    def again(self, codes: Mapping[int, int]) -> bool:
        return not REFUSED & set(codes.values())


def exit_code(codes: Mapping[int, int]) -> int:
    """One for the machine, from those of its failed ranks, negative for signals: a refusal, else what came first."""
    refused = [code for code in codes.values() if code in REFUSED]
    # A rank that is told to stop most often follows another one's end.
    first = min(
        codes.values(), key=lambda code: (code == -signal.SIGTERM, code == -signal.SIGABRT), default=1
    )
    code = refused[0] if refused else first
    return code if code >= 0 else 128 - code


def endpoint(text: str) -> str:
    """`host:port`; the host of `env:NAME:port` is this machine where the variable is empty or missing."""
    if not text.startswith(ENVIRONMENT):
        return text
    name, _, port = text.removeprefix(ENVIRONMENT).rpartition(":")
    # Some schedulers tell every machine but the first who is the first.
    return f"{os.environ.get(name) or 'localhost'}:{port}"


def main(argv: Sequence[str]) -> int:
    """Run torchrun; the exit code."""
    words = list(argv)
    at = words.index("--rdzv-endpoint") + 1
    words[at] = endpoint(words[at])
    install(UnlessRefused())
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(words)
    except ChildFailedError as error:
        return exit_code(exit_codes(error.failures))
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
