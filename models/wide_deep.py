"""Wide & Deep: logistic regression beside an MLP, trained together.

Source: Cheng et al., 2016, eq. 3. As in BARS, the wide part has every column and no hand-made crosses.
"""

from torch import Tensor, nn

from sparta.models.args import Hidden, Rate
from sparta.models.batch import Batch
from sparta.models.embedding import Embeddings, Inputs
from sparta.models.field import Fields, FirstOrder, refuse_many_labels
from sparta.models.layers import MLP


class WideDeep(nn.Module):
    """logit = <w, x> + MLP(fields)."""

    def __init__(
        self,
        inputs: Inputs,
        *,
        hidden: Hidden = (400, 400, 400),
        dropout: Rate = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        refuse_many_labels(inputs, "wide_deep")
        self.embeddings = Embeddings(inputs, wide=True)
        self.fields = Fields(inputs)
        self.wide = FirstOrder(inputs)
        self.deep = MLP(self.fields.width, hidden, dropout=dropout, batch_norm=batch_norm, out=1, name="deep")

    def forward(self, batch: Batch) -> Tensor:
        embedded = self.embeddings(batch)
        x_BN = self.fields(batch.dense, embedded)
        return self.wide(batch.dense, embedded) + self.deep(x_BN, batch.slots)  # type: ignore[no-any-return]
