"""DCNv2: a cross network of matrices with an MLP beside it, behind it, or without one.

Source: Wang et al., 2021; structures as in figure 1. BARS uses `parallel` and the full-rank cross.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import CrossNet

from sparta.models.args import Hidden, Rate, Size
from sparta.models.batch import Batch
from sparta.models.embedding import Embeddings, Inputs
from sparta.models.field import Fields, refuse_many_labels
from sparta.models.interactions import MixtureCross
from sparta.models.layers import MLP, linear


class DCNv2(nn.Module):
    """logit = w . z + b with z = [cross(fields), MLP(fields)], MLP(cross(fields)) or cross(fields).

    Args:
        structure: `parallel`, `stacked` or `crossnet_only`, in this order.
        mixture: cross by a gated mixture of low-rank experts instead of full matrices.
        low_rank: rank of the mixture's experts.
        experts: of the mixture.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        layers: Size = 3,
        structure: Literal["parallel", "stacked", "crossnet_only"] = "parallel",
        mixture: bool = False,
        low_rank: Size = 32,
        experts: Size = 4,
        hidden: Hidden = (400, 400, 400),
        dropout: Rate = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        refuse_many_labels(inputs, "dcn_v2")
        self.embeddings = Embeddings(inputs)
        self.fields = Fields(inputs)
        self.structure = structure if hidden else "crossnet_only"
        width = self.fields.width
        self.cross = (
            MixtureCross(width, layers, low_rank=low_rank, experts=experts)
            if mixture
            else CrossNet(width, layers)
        )
        self.deep: MLP | None = None
        if self.structure != "crossnet_only":
            self.deep = MLP(width, hidden, dropout=dropout, batch_norm=batch_norm, name="deep")
        last = {"parallel": [width, *hidden[-1:]], "stacked": hidden[-1:], "crossnet_only": [width]}
        self.last = linear(sum(last[self.structure]), 1)

    def forward(self, batch: Batch) -> Tensor:
        x_BN = self.fields(batch.dense, self.embeddings(batch))
        z = self.cross(x_BN)
        if self.deep is not None:
            if self.structure == "stacked":
                z = self.deep(z, batch.slots)
            else:
                z = torch.cat([z, self.deep(x_BN, batch.slots)], dim=1)
        return self.last(z)  # type: ignore[no-any-return]
