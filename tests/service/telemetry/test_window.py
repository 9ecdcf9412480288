"""The window's metrics are those of an evaluation of its last samples."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparta.service.metrics import Evaluation
from sparta.service.telemetry.window import Window

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batch(seed: int, samples: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, 2, generator=random)
    labels = (torch.rand(samples, 2, generator=random) < logits.sigmoid()).float()
    return logits, labels, (torch.rand(samples, generator=random) < 0.9).float()


@given(st.lists(st.integers(8, 40), min_size=1, max_size=12), st.integers(8, 100))
def test_it_is_the_evaluation_of_whole_last_batches(sizes: list[int], samples: int) -> None:
    window = Window(("click", "buy"), samples)
    batches = [batch(seed, size) for seed, size in enumerate(sizes)]
    for one in batches:
        window.add(*one)
    held: list[Batch] = []
    while batches and sum(len(one[2]) for one in held) < samples:
        held.insert(0, batches.pop())
    oracle = Evaluation(("click", "buy"), alone=True)
    for one in held:
        oracle.update(*(part.numpy() for part in one))
    assert window.metrics() == oracle.compute()


def test_before_the_first_sample_there_is_nothing_to_say() -> None:
    assert Window(("click",)).metrics() == {}
