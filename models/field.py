"""Columns as fields: what a model multiplies, crosses and concatenates.

As FuxiCTR does it, a dense column x_d is a field too: its embedding is x_d * v_d with a learned vector
v_d, and its first-order term x_d * w_d. DLRM alone puts dense columns through an MLP instead.

FuxiCTR draws v_d as Xavier-normal (std 0.34 for E = 16): the products of 13 dense fields then begin as
noise of several logits, which a short training on few rows does not forget (criteo_tb80k: AUC 0.55).
"""

# B = slots, D = dense columns, F = categorical features, E = embedding dim, N = width of all fields

import torch
from torch import Tensor, nn

from sparta.models.embedding import Embedded, Inputs
from sparta.models.errors import ConfigError

DENSE_STD = 0.01
"""Of the initial v_d."""


class Fields(nn.Module):
    """All fields side by side, dense columns first: (B, N), which is (B, D + F, E) when widths are equal."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        schema, dim = inputs.schema, inputs.embedding_dim
        self.count = len(schema.dense) + len(schema.sparse)
        self.width = len(schema.dense) * dim + sum(inputs.dim(feature.name) for feature in schema.sparse)
        self.vectors_DE: nn.Parameter | None = None
        if schema.dense:
            self.vectors_DE = nn.Parameter(DENSE_STD * torch.randn(len(schema.dense), dim))

    def forward(self, dense_BD: Tensor, embedded: Embedded) -> Tensor:
        if self.vectors_DE is None:
            return embedded.deep()
        return torch.cat([(dense_BD[:, :, None] * self.vectors_DE).flatten(1), embedded.deep()], dim=1)


class FirstOrder(nn.Module):
    """Logistic regression's sum <w, x> over all columns, (B, 1); the bias is the model's own.

    The weights start at 0. FuxiCTR draws those of dense columns from N(0, 1), which only adds noise: this
    part is convex, and has no symmetry to break.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        columns = len(inputs.schema.dense)
        self.weights_D = nn.Parameter(torch.zeros(columns)) if columns else None

    def forward(self, dense_BD: Tensor, embedded: Embedded) -> Tensor:
        total_B = embedded.wide().sum(1)
        if self.weights_D is not None:
            total_B = total_B + dense_BD @ self.weights_D
        return total_B[:, None]


def refuse_many_labels(inputs: Inputs, model: str) -> None:
    """Raise ConfigError unless the dataset has the one label that a single-task model predicts."""
    labels = inputs.schema.labels
    if len(labels) != 1:
        raise ConfigError(
            f"model.name: {model} predicts one label, the dataset has {len(labels)} ({', '.join(labels)}); "
            "prepare it with one of them"
        )
