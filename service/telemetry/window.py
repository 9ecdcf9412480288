"""How well the model scores the samples of the last steps, each before it was learned from.

A rank looks at its own share of the batches, which is as good a sample as any: no collective, and nothing but a
reference a step is taken on the path of training. The metrics are worked out when somebody asks.
"""

from collections import deque
from collections.abc import Sequence

from torch import Tensor

from sparta.service.metrics import Evaluation, Metrics

SAMPLES = 100_000


class Window:
    """The last samples of this rank, `samples` or a batch more.

    Args:
        labels: names of the tasks, in the order of the logits' columns.
    """

    def __init__(self, labels: Sequence[str], samples: int = SAMPLES) -> None:
        self.labels = tuple(labels)
        self._samples = samples
        self._batches: deque[tuple[Tensor, Tensor, Tensor]] = deque()
        self._held = 0

    def add(self, logits_BT: Tensor, labels_BT: Tensor, weights_B: Tensor) -> None:
        """Keep a batch, on the device where it is; what is older than the window is given up."""
        self._batches.append((logits_BT, labels_BT, weights_B))
        self._held += len(weights_B)
        while self._held - len(self._batches[0][2]) >= self._samples:
            self._held -= len(self._batches.popleft()[2])

    def metrics(self) -> dict[str, Metrics]:
        """As of an evaluation, by task, from any thread; empty before the first sample that counts.

        Raises:
            DataError: a logit is not finite, or no sample has weight.
        """
        batches = list(self._batches)  # in one go: the training thread adds to it
        if not batches:
            return {}
        evaluation = Evaluation(self.labels, alone=True)
        for logits, labels, weights in batches:
            evaluation.update(logits.float().cpu().numpy(), labels.cpu().numpy(), weights.cpu().numpy())
        return evaluation.compute()
