"""What counts as a table, and what is counted."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparta.optim.helen import Helen
from tests.optim.toys import Batch, Toy, batch_of, closure, loss_of


class One(nn.Module):
    """One table of six rows, looked up as the test wants."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = self.table(*args, **kwargs)
        return found


def counts(table: nn.Module, *args: Any, **kwargs: Any) -> list[int]:
    """Occurrences that one step counts."""
    model = One(table)
    helen = Helen(model)
    model(*args, **kwargs).square().sum().backward()
    helen.second_step()
    state: Tensor = helen.tables["table"].state["N"]
    return state.tolist()


IDS = torch.tensor([3, 0, 3, 5])


def test_ids_come_in_any_shape() -> None:
    expected = [1, 0, 0, 2, 0, 1]
    assert counts(nn.Embedding(6, 2), IDS) == expected
    assert counts(nn.Embedding(6, 2), IDS.reshape(2, 1, 2)) == expected
    assert counts(nn.Embedding(6, 2), input=IDS.int()) == expected
    assert counts(nn.EmbeddingBag(6, 2), IDS.reshape(2, 2)) == expected
    assert counts(nn.EmbeddingBag(6, 2), IDS, torch.tensor([0, 0, 3])) == expected
    assert counts(nn.EmbeddingBag(6, 2, mode="max"), IDS, offsets=torch.tensor([0])) == expected


def test_per_sample_weights_do_not_change_counts() -> None:
    weights = torch.tensor([0.0, 2.0, 0.5, 0.0])
    bag = nn.EmbeddingBag(6, 2, mode="sum")
    assert counts(bag, IDS, torch.tensor([0]), per_sample_weights=weights) == [1, 0, 0, 2, 0, 1]


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_padding_is_counted_as_little_as_it_has_a_gradient(kind: Any) -> None:
    assert counts(kind(6, 2, padding_idx=3), IDS.reshape(2, 2)) == [1, 0, 0, 0, 0, 1]


def test_only_lookups_of_training_are_counted() -> None:
    model = Toy()
    helen = Helen(model)
    batch = batch_of(1)
    model.eval()
    model(batch)
    model.train()
    with torch.no_grad():
        model(batch)
    loss_of(model, batch).backward()
    twin = copy.deepcopy(model)
    loss_of(twin, batch).backward()
    helen.ascend()
    loss_of(model, batch)
    helen.second_step()
    for field, table in enumerate(helen.tables.values()):
        assert table.state["N"].tolist() == batch.counts(field, len(table.weight))


def test_accumulated_gradients_are_of_all_their_batches() -> None:
    model = Toy()
    helen = Helen(model)
    batches = [batch_of(1), batch_of(2)]
    for batch in batches:
        loss_of(model, batch).backward()
    helen.second_step()
    for field, table in enumerate(helen.tables.values()):
        rows = len(table.weight)
        both = [a + b for a, b in zip(*(batch.counts(field, rows) for batch in batches), strict=True)]
        assert table.state["N"].tolist() == both


@pytest.mark.parametrize("sparse", [False, True])
def test_a_row_that_was_not_counted_must_have_no_gradient(sparse: bool) -> None:
    """Else its gradient would be dropped without a word: evaluation mode, another batch in the second pass."""
    model = Toy(sparse=sparse)
    helen = Helen(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, other = Batch([[[1]], [[1]]], [1.0]), Batch([[[2]], [[2]]], [1.0])
    loss_of(model, first).backward()
    helen.ascend()
    helen.zero_grad()
    loss_of(model, other).backward()
    with pytest.raises(ValueError, match=r"^table tables\.0: a row has a gradient and no count; [^\n]*$"):
        helen.second_step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    helen.step(closure(model, other))
    assert helen.tables["tables.0"].state["N"].tolist() == [0, 0, 1, 0, 0]


def test_frozen_tables_and_models_without_any() -> None:
    model = Toy()
    model.tables[0].weight.requires_grad_(False)
    assert list(Helen(model).tables) == ["tables.1"]
    with pytest.raises(ValueError, match=r"^the model has no nn.Embedding or nn.EmbeddingBag [^\n]*$"):
        Helen(nn.Linear(2, 1))


def test_a_table_that_forward_changes_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^embedding table: max_norm changes rows in the forward pass[^\n]*$"
    ):
        Helen(One(nn.Embedding(6, 2, max_norm=1.0)))
    computed = One(nn.Embedding(6, 2))
    torch.nn.utils.parametrizations.orthogonal(computed.table)
    with pytest.raises(ValueError, match=r"^embedding table: its weight is computed from others[^\n]*$"):
        Helen(computed)
