"""DLRM: dense columns through a bottom MLP to one more embedding, all embeddings' dot products to a top MLP.

Source: Naumov et al., 2019, section 2. BARS concatenates the embeddings instead: `interaction: cat`.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from sparta.models.args import Hidden, Rate
from sparta.models.batch import Batch
from sparta.models.embedding import Embeddings, Inputs
from sparta.models.errors import ConfigError
from sparta.models.field import refuse_many_labels
from sparta.models.interactions import inner_products
from sparta.models.layers import MLP


class DLRM(nn.Module):
    """logit = MLP([z, <e_i, e_j> for all i < j]), z = MLP(dense) being one of the e.

    A dataset without dense columns has no z, and only its categorical fields interact.

    Args:
        interaction: `dot` (the paper's) or `cat`, which gives the top MLP z and the embeddings themselves.
        bottom: hidden units for the dense columns; a layer of embedding_dim units follows them.
        hidden: units of the top MLP.
        dropout: of the top MLP.
        batch_norm: in both.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        interaction: Literal["dot", "cat"] = "dot",
        bottom: Hidden = (64, 32),
        hidden: Hidden = (400, 400, 400),
        dropout: Rate = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        refuse_many_labels(inputs, "dlrm")
        schema, dim = inputs.schema, inputs.embedding_dim
        if interaction == "dot" and not schema.dense and len(schema.sparse) == 1:
            raise ConfigError(
                f"model.args.interaction: 'dot' needs two fields, the dataset has only {schema.sparse[0].name!r}; "
                "use 'cat'"
            )
        self.embeddings = Embeddings(inputs, equal_dims=interaction == "dot")
        self.interaction = interaction
        self.bottom: MLP | None = None
        if schema.dense:
            # Its last layer has a ReLU as well, as in the authors' code.
            self.bottom = MLP(len(schema.dense), (*bottom, dim), batch_norm=batch_norm, name="bottom")
        fields = len(schema.sparse) + bool(schema.dense)
        if interaction == "dot":
            width = dim * bool(schema.dense) + fields * (fields - 1) // 2
        else:
            width = dim * bool(schema.dense) + sum(inputs.dim(feature.name) for feature in schema.sparse)
        self.top = MLP(width, hidden, dropout=dropout, batch_norm=batch_norm, out=1, name="top")

    def forward(self, batch: Batch) -> Tensor:
        columns = self.embeddings(batch).fields()
        z_BE = [] if self.bottom is None else [self.bottom(batch.dense, batch.slots)]
        x_BN = torch.cat([*z_BE, *columns], dim=1)
        if self.interaction == "dot":
            x_BGE = x_BN.view(len(x_BN), len(z_BE) + len(columns), -1)
            x_BN = torch.cat([*z_BE, inner_products(x_BGE)], dim=1)
        return self.top(x_BN, batch.slots)  # type: ignore[no-any-return]
