"""LoRA: a product of low rank."""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from ..option_checks import check_rank
from ..registry import register_adapter_kind


class LoRAAdapter(nn.Module):
    """LoRA, ``A(z) = α/r · B · A · z`` (arXiv 2106.09685, section 4.1).

    As in Hugging Face's peft, A starts with Kaiming's uniform distribution for a = √5 and B at
    zero, so a new adapter adds nothing. Inside the trunk it stands beside the projection to
    queries, keys and values and beside the first layer of the MLP, the two that widen; on the
    highway it maps a tap to its own width.

    Args:
        dim: channels C of the input.
        rank: rank r of the product.
        alpha: factor α; 0 for r.
        outputs: channels of the result; 0 for C.
    """

    def __init__(self, dim: int, rank: int = 8, alpha: float = 0.0, outputs: int = 0):
        super().__init__()
        check_rank(rank, dim)
        self.scale = (alpha or rank) / rank
        self.lora_A = nn.Linear(dim, rank, bias=False)
        self.lora_B = nn.Linear(rank, outputs or dim, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C] to [B, T, outputs]; ``height`` and ``width`` are not used."""
        return self.scale * self.lora_B(self.lora_A(z))


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {"rank": tensors["lora_A.weight"].shape[0]}


register_adapter_kind(
    "lora",
    LoRAAdapter,
    source="arXiv 2106.09685",
    read_options=_read_options,
    inside={"qkv": "normed", "fc1": "normed"},
)
