"""PNN with inner products (IPNN): an MLP over the fields and the products of all their pairs.

Source: Qu et al., 2016, section 3.1. As in BARS, the products enter the first layer directly, not through the
paper's low-rank factors of its kernel.
"""

import torch
from torch import Tensor, nn

from sparta.models.args import Hidden, Rate
from sparta.models.batch import Batch
from sparta.models.embedding import Embeddings, Inputs
from sparta.models.field import Fields, refuse_many_labels
from sparta.models.interactions import inner_products
from sparta.models.layers import MLP


class PNN(nn.Module):
    """logit = MLP([fields, <e_i, e_j> for all i < j])."""

    def __init__(
        self,
        inputs: Inputs,
        *,
        hidden: Hidden = (400, 400, 400),
        dropout: Rate = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        refuse_many_labels(inputs, "pnn")
        self.embeddings = Embeddings(inputs, equal_dims=True)
        self.fields = Fields(inputs)
        pairs = self.fields.count * (self.fields.count - 1) // 2
        self.deep = MLP(
            self.fields.width + pairs, hidden, dropout=dropout, batch_norm=batch_norm, out=1, name="deep"
        )

    def forward(self, batch: Batch) -> Tensor:
        x_BN = self.fields(batch.dense, self.embeddings(batch))
        products_BP = inner_products(x_BN.view(len(x_BN), self.fields.count, -1))
        return self.deep(torch.cat([x_BN, products_BP], dim=1), batch.slots)  # type: ignore[no-any-return]
