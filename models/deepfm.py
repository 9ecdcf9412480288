"""DeepFM: a factorisation machine and an MLP that share their embeddings.

Source: Guo et al., 2017, eq. 1 to 4.
"""

from torch import Tensor, nn

from sparta.models.args import Hidden, Rate
from sparta.models.batch import Batch
from sparta.models.embedding import Embeddings, Inputs
from sparta.models.field import Fields, FirstOrder, refuse_many_labels
from sparta.models.interactions import second_order
from sparta.models.layers import MLP


class DeepFM(nn.Module):
    """logit = <w, x> + sum of <e_i, e_j> over all i < j + MLP(fields)."""

    def __init__(
        self,
        inputs: Inputs,
        *,
        hidden: Hidden = (400, 400, 400),
        dropout: Rate = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        refuse_many_labels(inputs, "deepfm")
        self.embeddings = Embeddings(inputs, wide=True, equal_dims=True)
        self.fields = Fields(inputs)
        self.wide = FirstOrder(inputs)
        self.deep = MLP(self.fields.width, hidden, dropout=dropout, batch_norm=batch_norm, out=1, name="deep")

    def forward(self, batch: Batch) -> Tensor:
        embedded = self.embeddings(batch)
        x_BN = self.fields(batch.dense, embedded)
        fm_B1 = self.wide(batch.dense, embedded) + second_order(x_BN.view(len(x_BN), self.fields.count, -1))
        return fm_B1 + self.deep(x_BN, batch.slots)  # type: ignore[no-any-return]
