"""Storage of a frozen trunk's weights in half precision or in 8 bits."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_LEVELS = 127  # levels of an 8-bit weight on each side of zero


class Int8Linear(nn.Module):
    """A frozen linear layer with an 8-bit weight and one scale for each output channel.

    Its state dict is that of ``nn.Linear``: ``weight`` in float32 and ``bias``. Loading rounds the
    weight to 8 bits; a weight that was rounded before does not change.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        values, scale = quantize(linear.weight.detach())
        self.values = nn.Parameter(values, requires_grad=False)  # a parameter, so it is counted
        self.register_buffer("scale", scale, persistent=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weight [out, in] in float32."""
        return self.values * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "values"]
        destination[prefix + "weight"] = self.weight

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *rest) -> None:
        state_dict = dict(state_dict)
        weight = state_dict.pop(prefix + "weight", None)
        state_dict[prefix + "values"] = self.values
        if weight is None:
            missing.append(prefix + "weight")
        elif weight.shape != self.values.shape:
            shapes = f"{list(weight.shape)} in the file, {list(self.values.shape)} in the model"
            rest[-1].append(f"size mismatch for {prefix}weight: {shapes}")
        else:
            state_dict[prefix + "values"], scale = quantize(weight)
            self.scale.copy_(scale)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight [out, in] to int8 values times float32 scales [out], stable when repeated."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / _LEVELS
    for _ in range(2):  # towards the scale that the product will have
        scale = (_LEVELS * scale) / _LEVELS
    return (weight / scale[:, None]).round().clamp(-_LEVELS, _LEVELS).to(torch.int8), scale


def store_as(trunk: nn.Module, dtype: torch.dtype) -> None:
    """Convert a trunk's weights, except 8-bit weights and the patch mergings."""
    # The highway uses the patch mergings too, in float32.
    excepted = {id(p) for merging in trunk.patch_mergings if merging for p in merging.parameters()}
    for parameter in trunk.parameters():
        if parameter.is_floating_point() and id(parameter) not in excepted:
            parameter.data = parameter.data.to(dtype)


def store_in_8_bits(trunk: nn.Module) -> None:
    """Replace the blocks' linear layers, which hold nearly all of a Swin's weights."""
    for owner, name, linear in matrices(trunk):
        if not isinstance(linear, Int8Linear):
            setattr(owner, name, Int8Linear(linear))


def widen(trunk: nn.Module) -> None:
    """Convert a trunk's weights to float32; saving and loading them has the same effect."""
    for owner, name, stored in matrices(trunk):
        if isinstance(stored, Int8Linear):
            linear = nn.Linear(stored.in_features, stored.out_features, device="meta")
            linear.weight = nn.Parameter(stored.weight, requires_grad=False)
            linear.bias = stored.bias
            setattr(owner, name, linear)
    store_as(trunk, torch.float32)


def matrices(trunk: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield the owner, the name and the module of each linear layer of the trunk's blocks."""
    for block in (block for layer in trunk.layers for block in layer.blocks):
        attn, mlp = block.attn, block.mlp
        for owner, name in ((attn, "qkv"), (attn, "proj"), (mlp, "fc1"), (mlp, "fc2")):
            yield owner, name, getattr(owner, name)
