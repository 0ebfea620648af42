"""The loss of Detectron2's semantic head for batches without a labelled pixel."""

from functools import partial

import torch
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor


def accept_unlabelled(head: SemSegFPNHead) -> None:
    """Make the loss 0 where no pixel of a batch is labelled; Detectron2 divides 0 by 0 there.

    Heads with a loss of their own do not change.
    """
    if type(head).losses is SemSegFPNHead.losses and "losses" not in vars(head):
        head.losses = partial(_losses, head)


def _losses(head: SemSegFPNHead, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
    is_labelled = (targets != head.ignore_value).any()
    losses = SemSegFPNHead.losses(head, predictions, targets)
    return {name: torch.where(is_labelled, loss, 0.0) for name, loss in losses.items()}
