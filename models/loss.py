"""The loss of every model: binary cross-entropy with logits per task, tasks summed, samples weighted."""

# B = slots of this rank, T = tasks

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def loss(
    logits_BT: Tensor, labels_BT: Tensor, weights_B: Tensor, total_weight: Tensor | float, ranks: int
) -> Tensor:
    """This rank's scalar: `ranks * sum_local(w * l) / total_weight`, l the sum over the tasks.

    The factor undoes the division by the number of ranks that TorchRec and DDP apply to gradients, so a
    step is that of the global batch's weighted mean. A slot of weight 0 gives neither loss nor
    gradient whatever stands in it, infinities included; a batch without weight has loss 0.

    Args:
        total_weight: sum of the weights over all ranks.
    """
    real_B1 = (weights_B > 0)[:, None]
    # Masked before the logarithm: 0 times infinity would be NaN.
    logits_BT = torch.where(real_B1, logits_BT, 0).float()
    labels_BT = torch.where(real_B1, labels_BT, 0)
    loss_B = binary_cross_entropy_with_logits(logits_BT, labels_BT, reduction="none").sum(1)
    total = torch.as_tensor(total_weight, dtype=loss_B.dtype, device=loss_B.device)
    return ranks * (weights_B * loss_B).sum() / total.clamp(min=torch.finfo(loss_B.dtype).tiny)
