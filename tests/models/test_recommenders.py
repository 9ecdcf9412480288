"""Laws of the seven models: each is its paper's formula, trains all its weights, and never sees padding."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparta.models import zoo
from sparta.models.embedding import Inputs
from sparta.models.errors import ConfigError
from sparta.models.loss import loss
from tests.models.oracle import ORACLES, samples, values
from tests.models.toys import bags_of, make_batch, materialise, table_weights, take, toy_batch, toy_schema

SMALL: dict[str, Any] = {"hidden": [6, 5]}
CASES = [
    *[(name, SMALL) for name in zoo.ZOO],
    ("dcn", {"hidden": [], "layers": 2}),
    ("dcn_v2", {"structure": "stacked", **SMALL}),
    ("dcn_v2", {"structure": "crossnet_only"}),
    ("dcn_v2", {"hidden": []}),
    ("dcn_v2", {"mixture": True, "low_rank": 3, "experts": 3, **SMALL}),
    ("dcn_v2", {"mixture": True, "low_rank": 2, "experts": 1, "layers": 1, **SMALL}),
    ("dlrm", {"interaction": "cat", "bottom": [], **SMALL}),
]
STACKING = [("pnn", {}), ("deepfm", {}), ("dlrm", {})]
CONCATENATING = ["dnn", "wide_deep", "dcn", "dcn_v2"]


def build(name: str, inputs: Inputs, args: dict[str, Any], *, std: float = 0.5) -> nn.Module:
    torch.manual_seed(3)
    model = materialise(zoo.build(name, inputs, args), std=std, seed=4)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and first-order weights start at 0 and would hide
            if not parameter.any():
                parameter.normal_(std=0.3)
    return model


def backward(model: nn.Module, batch: Any) -> torch.Tensor:
    model.zero_grad()
    weights = batch.slots.weights
    value = loss(model(batch), batch.labels, weights, weights.sum(), 1)
    value.backward()
    return value.detach()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: p.grad.clone() if p.grad is not None else torch.zeros(0) for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("name,args", CASES)
@pytest.mark.parametrize("dense,sparse,multi", [(3, 4, 1), (0, 3, 1), (2, 1, 0)])
def test_a_model_is_its_papers_formula(
    name: str, args: dict[str, Any], dense: int, sparse: int, multi: int
) -> None:
    inputs = Inputs(toy_schema(dense=dense, sparse=sparse, multi=multi), embedding_dim=5)
    model = build(name, inputs, args)
    batch = toy_batch(inputs.schema, 9, seed=5)
    expected = np.stack([ORACLES[name](model, sample) for sample in samples(model, inputs, batch)])
    np.testing.assert_allclose(values(model(batch)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*CONCATENATING, "dlrm"])
def test_models_that_concatenate_take_tables_of_several_widths_and_both_poolings(name: str) -> None:
    schema = toy_schema(multi=2)
    inputs = Inputs(schema, embedding_dim=4, dims={"C1": 3, "C2": 8}, pooling={"C4": "sum", "C3": "mean"})
    args = SMALL | ({"interaction": "cat"} if name == "dlrm" else {})
    model = build(name, inputs, args)
    batch = toy_batch(schema, 9, seed=5)
    expected = np.stack([ORACLES[name](model, sample) for sample in samples(model, inputs, batch)])
    np.testing.assert_allclose(values(model(batch)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name,args", STACKING)
def test_models_that_stack_refuse_tables_of_several_widths(name: str, args: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="C1: dim 3 differs from embedding_dim 4"):
        zoo.build(name, Inputs(toy_schema(), embedding_dim=4, dims={"C1": 3}), args)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_one_field_is_enough(name: str) -> None:
    inputs = Inputs(toy_schema(dense=0, sparse=1, multi=0), embedding_dim=4)
    batch = toy_batch(inputs.schema, 9, seed=5)
    if name == "dlrm":
        with pytest.raises(ConfigError, match="'dot' needs two fields, the dataset has only 'C1'"):
            zoo.build(name, inputs, {})
        model = build(name, inputs, {"interaction": "cat"})
    else:
        model = build(name, inputs, SMALL)
    expected = np.stack([ORACLES[name](model, sample) for sample in samples(model, inputs, batch)])
    np.testing.assert_allclose(values(model(batch)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_several_labels_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} predicts one label.*y1, y2"):
        zoo.build(name, Inputs(toy_schema(labels=2)), {})


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_dataset_without_tables_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no categorical feature"):
        zoo.build(name, Inputs(toy_schema(sparse=0, multi=0)), {})


@pytest.mark.parametrize("name,args", CASES)
def test_every_weight_gets_a_gradient(name: str, args: dict[str, Any]) -> None:
    inputs = Inputs(toy_schema(rows=(5, 6, 4)), embedding_dim=5)
    model = build(name, inputs, args | {"batch_norm": True, "dropout": 0.2})
    batch = toy_batch(inputs.schema, 200, seed=5, longest=2)
    backward(model, batch)
    logical = {table.name: table.dim for table in zoo.tables(model)}
    for table, weight in table_weights(model).items():
        assert weight.grad is not None, table
        assert (weight.grad[:, : logical[table]].abs().sum(1) > 0).all(), table
    for parameter, gradient in gradients(model).items():
        assert gradient.numel(), parameter
        assert gradient.any(), parameter


@pytest.mark.parametrize("name,args", CASES)
@pytest.mark.parametrize("dim", [5, 8])
def test_padding_columns_have_no_gradient(name: str, args: dict[str, Any], dim: int) -> None:
    inputs = Inputs(toy_schema(), embedding_dim=dim)
    model = build(name, inputs, args)
    backward(model, toy_batch(inputs.schema, 20, seed=5))
    for table in zoo.tables(model):
        weight = table_weights(model)[table.name]
        assert weight.shape[1] % 4 == 0
        assert not weight[:, table.dim :].any()
        assert weight.grad is not None
        assert not weight.grad[:, table.dim :].any()


@pytest.mark.parametrize("name,args", CASES)
def test_permuting_the_samples_permutes_the_logits(name: str, args: dict[str, Any]) -> None:
    inputs = Inputs(toy_schema(), embedding_dim=4)
    model = build(name, inputs, args | {"batch_norm": True})
    batch = toy_batch(inputs.schema, 20, seed=5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    moved = take(inputs.schema, batch, order.tolist())
    for training in (True, False):
        model.train(training)
        assert_close(model(moved), model(batch)[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name,args", CASES)
def test_padding_slots_change_neither_loss_nor_gradient(name: str, args: dict[str, Any]) -> None:
    inputs = Inputs(toy_schema(), embedding_dim=4)
    model = build(name, inputs, args | {"batch_norm": True, "dropout": 0.3})
    padded = toy_batch(inputs.schema, 24, seed=5, padding=7, weighted=True)
    real = take(inputs.schema, padded, range(17))
    expected, expected_gradients = backward(model, real), gradients(model)
    assert_close(backward(model, padded), expected, rtol=1e-6, atol=1e-7)
    assert_close(gradients(model), expected_gradients, rtol=1e-4, atol=1e-6)
    # Whatever stands in a padding slot: the loader need not clear dense columns and labels.
    dense, labels = padded.dense.clone(), padded.labels.clone()
    dense[17:], labels[17:] = 1e3, 1
    bags = [[*feature[:17], *[[] for _ in range(7)]] for feature in bags_of(padded)]
    dirty = make_batch(inputs.schema, bags, dense, labels, padded.slots)
    assert_close(backward(model, dirty), expected, rtol=1e-6, atol=1e-7)
    assert_close(gradients(model), expected_gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_weight_of_two_is_two_samples(name: str) -> None:
    inputs = Inputs(toy_schema(), embedding_dim=4)
    model = build(name, inputs, SMALL | {"batch_norm": True})
    once = toy_batch(inputs.schema, 12, seed=5)
    twice = take(inputs.schema, once, [*range(12), *range(4)])
    once.slots.weights[:4] = 2
    expected, expected_gradients = backward(model, twice), gradients(model)
    assert_close(backward(model, once), expected, rtol=1e-6, atol=1e-7)
    assert_close(gradients(model), expected_gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name,args", CASES)
def test_bfloat16_autocast_trains_and_stays_near(name: str, args: dict[str, Any]) -> None:
    inputs = Inputs(toy_schema(), embedding_dim=4)
    model = build(name, inputs, args | {"batch_norm": True, "dropout": 0.2}, std=0.1)
    batch = toy_batch(inputs.schema, 64, seed=5)
    expected = backward(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = backward(model, batch)
    assert_close(found, expected, rtol=0.05, atol=0.05)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_dlrms_two_mlps_have_masks_of_their_own_and_only_the_top_drops_units() -> None:
    model: Any = zoo.build("dlrm", Inputs(toy_schema()), {"dropout": 0.5})
    assert all(dropout.probability == 0 for dropout in model.bottom.dropouts)
    names = [dropout.layer for part in (model.bottom, model.top) for dropout in part.dropouts]
    assert len(set(names)) == len(names)
