"""A small recommender of plain PyTorch, and batches for it, drawn by hypothesis or by a seed."""

# F = fields = tables, B = samples, D = columns

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

ROWS = (5, 9)
DIM = 3


@dataclass(frozen=True)
class Batch:
    """Ids by field and sample, and labels."""

    bags: list[list[list[int]]]
    labels: list[float]

    def counts(self, field: int, rows: int) -> list[int]:
        """Occurrences of each id, the slow way."""
        ids = [id for bag in self.bags[field] for id in bag]
        return [ids.count(row) for row in range(rows)]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """1 to 5 samples; bags hold 0 to 4 ids, ids repeat."""
    samples = draw(st.integers(1, 5))
    bags = [[draw(st.lists(st.integers(0, rows - 1), max_size=4)) for _ in range(samples)] for rows in ROWS]
    return Batch(bags, draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=samples, max_size=samples)))


def batch_of(seed: int, samples: int = 6) -> Batch:
    """A batch with frequent ids, repeats and empty bags."""
    draw = torch.Generator().manual_seed(seed)

    def bag(rows: int) -> list[int]:
        ids = torch.randint(0, rows, (int(torch.randint(0, 4, (), generator=draw)),), generator=draw)
        return [int(id) % rows // 2 if int(id) % 3 else int(id) for id in ids]

    labels = torch.randint(0, 2, (samples,), generator=draw).tolist()
    return Batch([[bag(rows) for _ in range(samples)] for rows in ROWS], [float(label) for label in labels])


class Toy(nn.Module):
    """Tables `tables.0` and `tables.1`, then `hidden`, optionally batch norm and dropout, then `out`."""

    def __init__(
        self,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        sparse: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.0,
        std: float = 0.5,
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, DIM, mode="sum", sparse=sparse) for rows in ROWS)
        self.hidden = nn.Linear(len(ROWS) * DIM, 4)
        self.norm = nn.BatchNorm1d(4, momentum=0.3) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(4, 1)
        self.to(dtype)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * std)

    def forward(self, batch: Batch) -> Tensor:
        pooled = []
        for table, bags in zip(self.tables, batch.bags, strict=True):
            ids = torch.tensor([id for bag in bags for id in bag], dtype=torch.int64)
            lengths = torch.tensor([len(bag) for bag in bags])
            pooled.append(table(ids, lengths.cumsum(0) - lengths))
        hidden = self.dropout(self.norm(self.hidden(torch.cat(pooled, dim=1))).tanh())
        logits: Tensor = self.out(hidden).squeeze(1)
        return logits


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch)
    return nn.functional.binary_cross_entropy_with_logits(logits, logits.new_tensor(batch.labels))


def closure(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """The loss with its gradients, as an optimizer's step takes it."""

    def run() -> Tensor:
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    return run


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of everything a step may change: weights, buffers, the state of tables and dense parameters."""
    found = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    state = optimizer.state_dict()
    for name, table in state["tables"].items():
        found |= {f"{name}.{key}": torch.as_tensor(value).clone() for key, value in table.items()}
    for number, values in state["dense"]["state"].items():
        found |= {f"dense.{number}.{key}": torch.as_tensor(value).clone() for key, value in values.items()}
    found["t"] = torch.tensor(state["t"])
    return found


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
