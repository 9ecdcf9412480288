"""The seven models written out sample by sample in float64, straight from their papers' formulas.

Nothing here is shared with the models but the values of their parameters.
"""

# Per sample: fields = list of vectors e_i, dense columns first; x = their concatenation.

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from sparta.models.batch import Batch
from sparta.models.embedding import Inputs
from tests.models.toys import bags_of, table_weights

Vector = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Sample:
    """What one sample looks like to a model: embeddings, first-order terms, dense values."""

    categorical: list[Vector]
    wide: float
    dense: Vector


def values(tensor: Any) -> Vector:
    return np.asarray(tensor.detach().double().numpy())


def samples(model: Any, inputs: Inputs, batch: Batch) -> list[Sample]:
    """Pool every bag by hand: the mean (or sum) of its rows, 0 when it is empty."""
    weights = {name: values(weight) for name, weight in table_weights(model).items()}
    bags = bags_of(batch)
    found = []
    for b in range(len(batch.dense)):
        categorical, wide = [], 0.0
        for f, feature in enumerate(inputs.schema.sparse):
            ids = bags[f][b]
            mean = feature.multi and inputs.pooling.get(feature.name, "mean") == "mean"
            divisor = max(1, len(ids)) if mean else 1
            pooled = np.zeros(inputs.dim(feature.name))
            for i in ids:
                pooled = pooled + weights[feature.name][i, : len(pooled)] / divisor
                if f"{feature.name}.wide" in weights:
                    wide += weights[f"{feature.name}.wide"][i, 0] / divisor
            categorical.append(pooled)
        found.append(Sample(categorical, wide, values(batch.dense[b])))
    return found


def fields_of(model: Any, sample: Sample) -> list[Vector]:
    """x_d * v_d for every dense column, then the categorical embeddings."""
    if len(sample.dense) == 0:
        return sample.categorical
    vectors = values(model.fields.vectors_DE)
    return [x * v for x, v in zip(sample.dense, vectors, strict=True)] + sample.categorical


def first_order(model: Any, sample: Sample) -> float:
    if len(sample.dense) == 0:
        return sample.wide
    return float(sample.wide + values(model.wide.weights_D) @ sample.dense)


def affine(layer: nn.Linear, x: Vector) -> Vector:
    return values(layer.weight) @ x + values(layer.bias)


def mlp(layers: Any, x: Vector) -> Vector:
    for layer in layers.linears:
        x = np.maximum(affine(layer, x), 0)
    return x if layers.last is None else affine(layers.last, x)


def pairs(fields: list[Vector]) -> list[float]:
    return [float(fields[i] @ fields[j]) for i in range(len(fields)) for j in range(i + 1, len(fields))]


def dnn(model: Any, sample: Sample) -> Vector:
    return mlp(model.deep, np.concatenate(fields_of(model, sample)))


def wide_deep(model: Any, sample: Sample) -> Vector:
    return first_order(model, sample) + dnn(model, sample)


def pnn(model: Any, sample: Sample) -> Vector:
    fields = fields_of(model, sample)
    return mlp(model.deep, np.concatenate([*fields, pairs(fields)]))


def deepfm(model: Any, sample: Sample) -> Vector:
    fields = fields_of(model, sample)
    fm = first_order(model, sample) + sum(pairs(fields))
    return fm + mlp(model.deep, np.concatenate(fields))


def dcn(model: Any, sample: Sample) -> Vector:
    x0 = np.concatenate(fields_of(model, sample))
    x = x0
    for w, b in zip(values(model.cross.weights_LN), values(model.cross.biases_LN), strict=True):
        x = x0 * (w @ x) + b + x
    deep = mlp(model.deep, x0) if model.deep.linears else np.zeros(0)
    return affine(model.last, np.concatenate([x, deep]))


def dcn_v2(model: Any, sample: Sample) -> Vector:
    x0 = np.concatenate(fields_of(model, sample))
    x = cross_mixture(model.cross, x0) if hasattr(model.cross, "gate_KN") else cross_matrix(model.cross, x0)
    if model.structure == "parallel":
        return affine(model.last, np.concatenate([x, mlp(model.deep, x0)]))
    if model.structure == "stacked":
        return affine(model.last, mlp(model.deep, x))
    return affine(model.last, x)


def cross_matrix(cross: Any, x0: Vector) -> Vector:
    x = x0
    for W, b in zip(cross.kernels, cross.bias, strict=True):
        x = x0 * (values(W) @ x + values(b)[:, 0]) + x
    return x


def cross_mixture(cross: Any, x0: Vector) -> Vector:
    x = x0
    for V, C, U, b in zip(cross.V, cross.C, cross.U, cross.bias, strict=True):
        scores = np.exp(values(cross.gate_KN) @ x) if len(C) > 1 else np.ones(1)
        moved = np.zeros_like(x)
        for k, score in enumerate(scores):
            low = np.tanh(values(C)[k] @ np.tanh(values(V)[k] @ x))
            moved += score / scores.sum() * x0 * (values(U)[k] @ low + values(b))
        x = moved + x
    return x


def dlrm(model: Any, sample: Sample) -> Vector:
    bottom = [] if model.bottom is None else [mlp(model.bottom, sample.dense)]
    fields = bottom + sample.categorical
    interacted = [pairs(fields)] if model.interaction == "dot" else sample.categorical
    return mlp(model.top, np.concatenate([*bottom, *interacted]))


ORACLES: dict[str, Callable[[Any, Sample], Vector]] = {
    "dnn": dnn,
    "wide_deep": wide_deep,
    "pnn": pnn,
    "deepfm": deepfm,
    "dcn": dcn,
    "dcn_v2": dcn_v2,
    "dlrm": dlrm,
}
