"""DCN: a cross network of vectors and an MLP side by side, joined in one last linear layer.

Source: Wang et al., 2017, eq. 3 to 6.
"""

import torch
from torch import Tensor, nn

from sparta.models.args import Hidden, Rate, Size
from sparta.models.batch import Batch
from sparta.models.embedding import Embeddings, Inputs
from sparta.models.field import Fields, refuse_many_labels
from sparta.models.interactions import VectorCross
from sparta.models.layers import MLP, linear


class DCN(nn.Module):
    """logit = w . [cross(fields), MLP(fields)] + b."""

    def __init__(
        self,
        inputs: Inputs,
        *,
        layers: Size = 3,
        hidden: Hidden = (400, 400, 400),
        dropout: Rate = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        refuse_many_labels(inputs, "dcn")
        self.embeddings = Embeddings(inputs)
        self.fields = Fields(inputs)
        width = self.fields.width
        self.cross = VectorCross(width, layers)
        self.deep = MLP(width, hidden, dropout=dropout, batch_norm=batch_norm, name="deep")
        self.last = linear(width + (self.deep.width if hidden else 0), 1)

    def forward(self, batch: Batch) -> Tensor:
        x_BN = self.fields(batch.dense, self.embeddings(batch))
        parts = [self.cross(x_BN)]
        if self.deep.linears:
            parts.append(self.deep(x_BN, batch.slots))
        return self.last(torch.cat(parts, dim=1))  # type: ignore[no-any-return]
