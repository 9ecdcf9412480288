"""torchrun, with its own talk in a log, and what became of the ranks in a file.

torchrun exits with 1 whatever happened and explains itself in a traceback of many lines. This stands in
for `python -m torch.distributed.run`, takes the same arguments after the folder of the logs, and leaves
there why the ranks failed. Unlike torchrun it restarts them only where that may help, and a second
signal ends them at once.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sparta.launcher.attempts import Attempts
from sparta.launcher.rank import append_to
from sparta.launcher.tether import PARENT, tether
from sparta.launcher.verdict import LOG


def main(argv: Sequence[str]) -> None:
    """Run torchrun with `argv` after the folder of the logs."""
    logs = Path(argv[0])
    tether(signal.SIGTERM)
    os.environ[PARENT] = str(os.getpid())
    append_to(logs / LOG, 1, 2)
    attempts = Attempts(logs, _restarts(argv))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    install(attempts)
    try:
        torchrun(list(argv[1:]))
    except ChildFailedError as error:
        attempts.give_up(exit_codes(error.failures))
        raise


def exit_codes(failures: Mapping[int, Any]) -> dict[int, int]:
    """Exit codes of the ranks that failed, negative for signals, from torchrun's ProcessFailures."""
    # Once a rank has failed, torchrun tells the others to stop and at last kills them. Its clock has whole seconds.
    late = min((failure.timestamp for failure in failures.values()), default=0) + 1
    return {
        rank: -signal.SIGTERM if failure.timestamp > late else failure.exitcode
        for rank, failure in failures.items()
    }


class Judge(Protocol):
    """Who decides whether ranks that failed are started again."""

    def again(self, codes: Mapping[int, int]) -> bool: ...


def install(attempts: Judge) -> None:
    """Have torchrun ask `attempts` before it restarts the ranks."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import api

    class Agent(LocalElasticAgent):
        """Overrides methods that torch documents for subclasses of its agents."""

        def _monitor_workers(self, worker_group: Any) -> Any:
            self._seen = super()._monitor_workers(worker_group)
            return self._seen

        def _restart_workers(self, worker_group: Any) -> None:
            failures = self._seen.failures
            if failures and not attempts.again(exit_codes(failures)):
                raise ChildFailedError("ranks", failures)
            super()._restart_workers(worker_group)

        def _shutdown(self, *arguments: Any, **options: Any) -> None:
            try:
                super()._shutdown(*arguments, **options)
            except SignalException:
                super()._shutdown(signal.SIGKILL)
                raise

    # torchrun has no option for the class of its agent.
    api.LocalElasticAgent = Agent  # type: ignore[attr-defined]


def _restarts(argv: Sequence[str]) -> int:
    """How many restarts torchrun is allowed."""
    return int(argv[argv.index("--max-restarts") + 1])


if __name__ == "__main__":
    main(sys.argv[1:])
