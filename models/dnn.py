"""DNN: an MLP over the concatenated fields, the baseline of all deep CTR models.

As FuxiCTR's DNN (the deep half of Cheng et al., 2016).
"""

from torch import Tensor, nn

from sparta.models.args import Hidden, Rate
from sparta.models.batch import Batch
from sparta.models.embedding import Embeddings, Inputs
from sparta.models.field import Fields, refuse_many_labels
from sparta.models.layers import MLP


class DNN(nn.Module):
    """logit = MLP(fields)."""

    def __init__(
        self,
        inputs: Inputs,
        *,
        hidden: Hidden = (400, 400, 400),
        dropout: Rate = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        refuse_many_labels(inputs, "dnn")
        self.embeddings = Embeddings(inputs)
        self.fields = Fields(inputs)
        self.deep = MLP(self.fields.width, hidden, dropout=dropout, batch_norm=batch_norm, out=1, name="deep")

    def forward(self, batch: Batch) -> Tensor:
        x_BN = self.fields(batch.dense, self.embeddings(batch))
        return self.deep(x_BN, batch.slots)  # type: ignore[no-any-return]
