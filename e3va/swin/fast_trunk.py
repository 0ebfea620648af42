"""The fast form of a frozen trunk's stages, without autograd.

It computes a block in chunks of a few rows of windows, which fit the processor's cache. So the wide
tensors (queries, keys and values, the MLP's hidden layer) never exist for the whole map.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.products import Product
from .modules import PatchEmbed, PatchMerging, SwinBlock
from .windows import Chunk, kind_masks, plan_windows

# Size of the MLP's hidden layer in one chunk: it fits a CPU's cache, and keeps a GPU busy.
CHUNK_BYTES = {"cpu": 12 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 256 * 2**20


def embed(embedding: PatchEmbed, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Map images [B, 3, H, W] to tokens [B, ceil(H/4), ceil(W/4), C] of type ``dtype``."""
    proj = embedding.proj
    x = embedding.pad(images).to(dtype)
    x = F.conv2d(x, proj.weight.to(dtype), proj.bias.to(dtype), stride=proj.stride)
    return _norm(embedding.norm, x.permute(0, 2, 3, 1)).contiguous()


def run_block(block: SwinBlock, x: Tensor, keep: Iterable[str]) -> dict[str, Tensor]:
    """Compute the values ``keep`` and ``after_mlp`` of :meth:`SwinBlock.forward`."""
    attention, mlp, shape, dtype = block.attn, block.mlp, x.shape, x.dtype
    x = x.reshape(-1, shape[-1])
    out = {name: torch.empty_like(x) for name in {*keep, "after_mlp"}}
    limit = CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES_ELSEWHERE)
    rows = max(1, limit // (mlp.fc1.out_features * x.element_size()))
    chunks = plan_windows(*shape[:3], block.window, block.shift, rows, x.device)
    qkv, proj, fc1, fc2 = (
        Product(layer.weight, layer.bias, dtype, min(rows, len(x)), len(chunks))
        for layer in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2)
    )
    biases, apart = _attention_biases(block, dtype), "projected" in out
    for chunk in chunks:
        before = x[chunk.tokens]
        windows = qkv(_norm(block.norm1, before)).index_select(0, chunk.gather)
        if len(chunk.padding):  # A padded token is zero after the norm.
            windows[chunk.padding] = qkv.bias
        heads = _attend(windows, chunk, biases, attention.num_heads).index_select(0, chunk.scatter)
        values = {}
        values["attended"], values["after_msa"] = _sublayer(proj, heads, before, apart)
        hidden = fc1(_norm(block.norm2, values["after_msa"]), "gelu")
        last = _sublayer(fc2, hidden, values["after_msa"], apart)
        values["projected"], values["after_mlp"] = last
        for name, whole in out.items():
            whole[chunk.tokens] = values[name]
    return {name: whole.view(shape) for name, whole in out.items()}


def _sublayer(last: Product, x: Tensor, stream: Tensor, apart: bool) -> tuple:
    """Return a sublayer's output (None unless ``apart``) and the residual stream after it."""
    if not apart:
        return None, last.add(x, stream)
    output = last(x)
    return output, stream + output


def merge(merging: PatchMerging, x: Tensor, height: int, width: int) -> Tensor:
    """Merge patches: [B, H · W, C] to [B, ceil(H/2) · ceil(W/2), 2C]."""
    joined = _norm(merging.norm, merging.corners(x, height, width))
    reduction = Product(merging.reduction.weight, None, x.dtype)
    return reduction(joined.flatten(0, 1)).unflatten(0, joined.shape[:2])


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def _attention_biases(block: SwinBlock, dtype: torch.dtype) -> Tensor:
    """Return the logits' biases for each kind of window: [1 or 4, heads, N, N]."""
    bias = block.attn.bias()[None]
    if block.shift:
        bias = bias + kind_masks(block.window, block.shift, bias.device)[:, None]
    half_on_cpu = bias.device.type == "cpu" and dtype.itemsize == 2
    return bias.to(torch.float32 if half_on_cpu else dtype)


def _attend(windows: Tensor, chunk: Chunk, biases: Tensor, heads: int) -> Tensor:
    """Attend within windows: queries, keys and values [count · N, 3C] to [count · N, C]."""
    tokens = biases.shape[-1]
    qkv = windows.view(-1, tokens, 3, heads, windows.shape[1] // 3 // heads).permute(2, 0, 3, 1, 4)
    if biases.dtype is windows.dtype:
        attend = _attend_fused
    else:
        attend, qkv = _attend_in_steps, qkv.contiguous()
    # By kind of window, so that no mask is expanded to all windows.
    parts = [attend(qkv[:, a:b], biases[kind]) for a, b, kind in chunk.groups]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.view(len(windows), -1)


def _attend_fused(qkv: Tensor, bias: Tensor) -> Tensor:
    """Map [3, count, heads, N, d] to [count, N, heads · d]."""
    out = F.scaled_dot_product_attention(*qkv, attn_mask=bias[None])
    return out.transpose(1, 2).flatten(2)


def _attend_in_steps(qkv: Tensor, bias: Tensor) -> Tensor:
    """Compute the same in half precision on a CPU, where the fused operator takes twice as long."""
    count, heads, tokens, dim = qkv.shape[1:]
    query, key, value = qkv.flatten(1, 2)
    logits = torch.bmm(query, key.transpose(1, 2)).view(count, heads, tokens, tokens)
    share = torch.add(bias, logits, alpha=dim**-0.5).softmax(-1).to(qkv.dtype)
    out = torch.bmm(share.view(-1, tokens, tokens), value)
    return out.view(count, heads, tokens, dim).transpose(1, 2).flatten(2)
