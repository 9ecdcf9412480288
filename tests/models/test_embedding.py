"""Laws of the tables: pooled by hand they are the same, in the schema's order, whatever TorchRec's order."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchrec import KeyedTensor

from sparta.models.batch import Batch
from sparta.models.embedding import Embeddings, Inputs, Table, padded, table_name, torchrec_name
from sparta.models.errors import ConfigError
from sparta.models.schema import Feature, Schema
from tests.models.toys import bags_of, materialise, table_weights, toy_batch, toy_schema


class Holder(nn.Module):
    """The least that has tables."""

    def __init__(self, embeddings: Embeddings) -> None:
        super().__init__()
        self.embeddings = embeddings


def pool(weight: Tensor, bags: list[list[int]], dim: int, *, mean: bool) -> Tensor:
    rows = [weight[bag, :dim].sum(0) / (max(1, len(bag)) if mean else 1) for bag in bags]
    return torch.stack(rows)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dims", [{}, {"C1": 3, "C4": 6}])
@pytest.mark.parametrize("pooling", [{}, {"C4": "sum"}])
def test_fields_are_the_rows_of_every_bag_pooled_by_hand(
    wide: bool, dims: dict[str, int], pooling: dict[str, str]
) -> None:
    schema = toy_schema(multi=2)
    inputs = Inputs(schema, embedding_dim=5, dims=dims, pooling=pooling)
    model = materialise(Holder(Embeddings(inputs, wide=wide)), std=1.0)
    batch = toy_batch(schema, 12, seed=1, padding=2)
    embedded, weights, bags = model.embeddings(batch), table_weights(model), bags_of(batch)
    means = [f.multi and pooling.get(f.name, "mean") == "mean" for f in schema.sparse]
    for index, feature in enumerate(schema.sparse):
        dim = dims.get(feature.name, 5)
        expected = pool(weights[feature.name], bags[index], dim, mean=means[index])
        assert_close(embedded.fields()[index], expected)
        if wide:
            expected = pool(weights[feature.name + ".wide"], bags[index], 1, mean=means[index])
            assert_close(embedded.wide()[:, index : index + 1], expected)


class Shuffled(nn.Module):
    """Tables whose output comes in another order, as it does when they are sharded."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, sparse: object) -> KeyedTensor:
        pooled = self.tables(sparse)
        keys = list(reversed(pooled.keys()))
        return KeyedTensor(
            keys, [pooled[key].shape[1] for key in keys], torch.cat([pooled[key] for key in keys], dim=1)
        )


def test_fields_do_not_depend_on_the_order_torchrec_delivers() -> None:
    schema = toy_schema()
    model = materialise(Holder(Embeddings(Inputs(schema, embedding_dim=5), wide=True)), std=1.0)
    batch = toy_batch(schema, 12, seed=1)
    expected = model.embeddings(batch)
    model.embeddings.tables = Shuffled(model.embeddings.tables)
    found = model.embeddings(batch)
    assert_close(found.fields(), expected.fields())
    assert_close(found.wide(), expected.wide())


def test_what_lies_side_by_side_is_not_copied_and_is_the_same() -> None:
    schema = toy_schema(sparse=3, multi=0)
    model = materialise(Holder(Embeddings(Inputs(schema, embedding_dim=8), wide=True)), std=1.0)
    batch = toy_batch(schema, 12, seed=1)
    found = model.embeddings(batch)
    model.embeddings.tables = Shuffled(model.embeddings.tables)
    expected = model.embeddings(batch)
    assert_close(found.deep(), expected.deep())
    assert_close(found.wide(), expected.wide())
    assert found.deep().untyped_storage().data_ptr() == found.wide().untyped_storage().data_ptr()
    assert expected.deep().untyped_storage().data_ptr() != expected.wide().untyped_storage().data_ptr()


def test_tables_are_one_per_feature_and_a_twin_where_asked_for() -> None:
    inputs = Inputs(toy_schema(sparse=2, multi=0), embedding_dim=6, dims={"C2": 3})
    assert Embeddings(inputs, wide=True).specs == [
        Table("C1", "C1", 5, 6),
        Table("C2", "C2", 11, 3),
        Table("C1.wide", "C1", 5, 1),
        Table("C2.wide", "C2", 11, 1),
    ]
    assert [table.name for table in Embeddings(inputs, deep=False, wide=True).specs] == ["C1.wide", "C2.wide"]
    assert all(parameter.is_meta for parameter in Embeddings(inputs).parameters())


@pytest.mark.parametrize("name", ["C1", "C1.wide", "type", "items.wide", "keys", "user id"])
def test_torchrec_names_come_back_and_offend_no_module_dict(name: str) -> None:
    nn.ModuleDict()[torchrec_name(name)] = nn.Identity()
    assert table_name(torchrec_name(name)) == name


def test_a_feature_may_be_called_like_a_method_of_a_module() -> None:
    schema = Schema(
        sparse=tuple(Feature(name=name, rows=3) for name in ("type", "items", "forward")),
        labels=("y",),
        splits={"train": 1},
    )
    model = materialise(Holder(Embeddings(Inputs(schema), wide=True)), std=1.0)
    batch: Batch = toy_batch(schema, 4, seed=1)
    assert model.embeddings(batch).wide().shape == (4, 3)


def test_padded_is_the_next_multiple_of_four() -> None:
    assert [padded(dim) for dim in (1, 4, 5, 8, 10)] == [4, 4, 8, 8, 12]


@pytest.mark.parametrize(
    "inputs,message",
    [
        ({"dims": {"C9": 4}}, "'C9' is no categorical feature"),
        ({"pooling": {"C9": "sum"}}, "'C9' is no multi-valued feature"),
        ({"pooling": {"C1": "sum"}}, "'C1' is no multi-valued feature"),
        ({"pooling": {"C4": "max"}}, "C4: pooling 'max' is neither 'sum' nor 'mean'"),
    ],
)
def test_settings_of_unknown_tables_and_poolings_are_refused(
    inputs: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Embeddings(Inputs(toy_schema(), **inputs))  # type: ignore[arg-type]
