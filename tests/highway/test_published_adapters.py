"""Published adapters equal their equations and, where a checkout is present, their authors' code.

The environment variable AUTHORS_CODE names a folder of checkouts: ``mona``, ``CoLin``,
``AdaptFormer``, ``Conv-Adapter`` and ``DTL``.
"""

import ast
import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from e3va import E3VABackbone, UserError
from e3va.highway.frozen_matrix import FrozenMatrix
from e3va.highway.registry import get_adapter_kind
from e3va.swin.modules import SwinBlock

HEIGHT, WIDTH = 5, 7


def adapter(name: str, dim: int, **options) -> nn.Module:
    """Make an adapter in float64 whose parameters are all random."""
    torch.manual_seed(0)
    if "frozen" in get_adapter_kind(name).given:
        options["frozen"] = FrozenMatrix(SwinBlock(dim, 2, 3, 0, 2.0).double())
    module = get_adapter_kind(name).module(dim, **options).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def tap(dim: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, HEIGHT * WIDTH, dim, dtype=torch.float64)


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def convolve(maps, weight, bias):
    """Compute a grouped convolution [B, H, W, C] with zeros around the map, tap by tap."""
    outputs, inputs, side, _ = weight.shape
    padded = F.pad(maps, (0, 0, side // 2, side // 2, side // 2, side // 2))
    # Group g holds outputs // groups outputs and the channels g · inputs .. (g + 1) · inputs − 1.
    groups = maps.shape[-1] // inputs
    each = outputs // groups
    total = bias.expand(*maps.shape[:3], outputs).clone()
    for row in range(side):
        for column in range(side):
            seen = padded[:, row : row + maps.shape[1], column : column + maps.shape[2]]
            seen = seen.unflatten(-1, (groups, inputs))
            kernel = weight[:, :, row, column].unflatten(0, (groups, each))
            total += torch.einsum("bhwgi,goi->bhwgo", seen, kernel).flatten(-2)
    return total


def as_map(z):
    return z.unflatten(1, (HEIGHT, WIDTH))


def adaptformer(m, z):
    down, up = m.down_proj, m.up_proj
    return 0.25 * (torch.relu(z @ down.weight.t() + down.bias) @ up.weight.t() + up.bias)


def mona(m, z):
    centred = z - z.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = normed * m.norm.weight + m.norm.bias
    y = as_map((m.gamma_norm * normed + m.gamma_tap * z) @ m.down.weight.t() + m.down.bias)
    v = y + sum(convolve(y, conv.weight, conv.bias) for conv in m.convs) / 3
    v = v + v @ m.pointwise.weight[:, :, 0, 0].t() + m.pointwise.bias
    return (gelu(v) @ m.up.weight.t() + m.up.bias).flatten(1, 2)


def lorand(m, z):
    def project(layer, x):
        products = (p @ k @ q for p, k, q in zip(layer.p, layer.k, layer.q, strict=True))
        return x @ sum(products) + layer.bias

    return project(m.up, gelu(project(m.down, z)))


def colin(m, z):
    sigma = torch.diag(m.sigma.sum(0))
    y = as_map(z @ m.p_down @ sigma @ m.q_down + m.down_bias)
    share = torch.sigmoid(m.gamma[:, 0, 0])
    y = share * convolve(y, m.conv.weight, m.conv.bias) + (1 - share) * y
    return gelu(y.flatten(1, 2)) @ m.p_up @ sigma @ m.q_up + m.up_bias


def conv_adapter(m, z):
    inner = gelu(convolve(as_map(z), m.conv.weight, m.conv.bias)).flatten(1, 2)
    return m.alpha * (inner @ m.pointwise.weight[:, :, 0, 0].t() + m.pointwise.bias)


def conv_adapter_older(m, z):
    inner = gelu(as_map(z @ m.narrow.weight[:, :, 0, 0].t() + m.narrow.bias))
    inner = convolve(inner, m.conv.weight, m.conv.bias).flatten(1, 2)
    return m.alpha * gelu(inner @ m.pointwise.weight[:, :, 0, 0].t() + m.pointwise.bias)


def spectral_order(matrix):
    """Order the rows of a matrix by the mean index of the singular values that make them up."""
    left, values, _ = torch.linalg.svd(matrix.float(), full_matrices=False)
    means = []
    for row in left:
        energies = [(u * s).item() ** 2 for u, s in zip(row, values, strict=True)]
        means.append(sum(j * e for j, e in enumerate(energies)) / sum(energies))
    return sorted(range(len(means)), key=means.__getitem__)


def smoa_change(m, matrix):
    """Compute ΔM of SMoA, element by element."""
    delta = torch.zeros_like(matrix)
    rows = torch.tensor(spectral_order(matrix)).tensor_split(len(m.lora_A))
    columns = torch.tensor(spectral_order(matrix.t())).tensor_split(len(m.lora_A))
    for a, b, row_part, column_part in zip(m.lora_A, m.lora_B, rows, columns, strict=True):
        for i, row in enumerate(row_part):
            for j, column in enumerate(column_part):
                delta[row, column] = (b[i] * a[:, j]).sum() * matrix[row, column]
    return delta


def smoa(m, z):
    return 6 / 5 * z @ smoa_change(m, m.frozen.block.attn.proj.weight.detach()).t()


def krona(m, z):
    return 0.5 * z @ torch.kron(m.a, m.b) + m.residual_scale * z


def bottleneck(m, z):
    return gelu(z @ m.down.weight.t() + m.down.bias) @ m.up.weight.t() + m.up.bias


def lora(m, z):
    return 8 / 4 * z @ (m.lora_B.weight @ m.lora_A.weight).t()


def mea(m, z):
    outputs, before = [], 0
    for group, x in zip(m.branches, (m.down(z)[..., :4], m.down(z)[..., 4:]), strict=True):
        n = F.layer_norm(x + before, (4,), group.norm.weight, group.norm.bias)
        query, key, value = as_map(group.qkv(n)).split(4, dim=-1)
        attended = torch.zeros_like(as_map(n))
        for row in range(HEIGHT):
            for column in range(WIDTH):
                # Two channels see the token's row, two its column.
                for own, seen in (
                    (slice(0, 2), (slice(None), row)),
                    (slice(2, 4), (slice(None), slice(None), column)),
                ):
                    logits = torch.einsum(
                        "bc,blc->bl", query[:, row, column, own], key[seen][..., own]
                    )
                    weights = (logits / math.sqrt(2)).softmax(-1)
                    attended[:, row, column, own] = torch.einsum(
                        "bl,blc->bc", weights, value[seen][..., own]
                    )
        first, _, last = group.mlp
        hidden = gelu(n @ first.weight.t() + first.bias) @ last.weight.t() + last.bias
        local = gelu(convolve(as_map(n), group.conv.weight, group.conv.bias)).flatten(1, 2)
        local = local @ group.pointwise.weight[:, :, 0, 0].t() + group.pointwise.bias
        before = group.proj(attended.flatten(1, 2)) + hidden + local
        outputs.append(before)
    return torch.cat(outputs, -1) @ m.up.weight.t() + m.up.bias


EQUATIONS = [
    ("mea", {"rank": 8, "groups": 2, "mlp_ratio": 3}, mea),
    ("bottleneck", {"rank": 3}, bottleneck),
    ("lora", {"rank": 4, "alpha": 8.0}, lora),
    ("adaptformer", {"rank": 3, "scale": 0.25}, adaptformer),
    ("mona", {"rank": 3}, mona),
    ("lorand", {"rank": 3, "branches": 2, "reduction": 3}, lorand),
    ("colin", {"rank": 3, "hidden": 5, "branches": 2, "orthogonality": 0.0}, colin),
    ("conv_adapter", {"reduction": 3, "kernel": 5}, conv_adapter),
    ("conv_adapter", {"reduction": 3, "kernel": 5, "pointwise_first": True}, conv_adapter_older),
    ("smoa", {"rank": 5, "blocks": 3, "alpha": 6.0}, smoa),
    ("krona", {"rows": 3, "columns": 2, "scale": 0.5, "residual": True}, krona),
]


@pytest.mark.parametrize(("name", "options", "equation"), EQUATIONS)
def test_outputs_and_gradients_are_those_of_the_equation(name, options, equation):
    module, z = adapter(name, 12, **options), tap(12).requires_grad_()
    ours = module(z, HEIGHT, WIDTH)
    theirs = equation(module, z)
    assert ours.shape == z.shape
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    inputs = (z, *module.parameters())
    one = torch.autograd.grad((ours * weight).sum(), inputs)
    two = torch.autograd.grad((theirs * weight).sum(), inputs)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


def test_colin_is_drawn_towards_orthonormality():
    def loss(m):  # of the authors' code: half the penalty of each branch
        eye = torch.eye(3, dtype=torch.float64)
        penalties = (
            (p.t() @ p - eye).square().sum() + (q @ q.t() - eye).square().sum()
            for p, q in ((m.p_down, m.q_down), (m.p_up, m.q_up))
        )
        return 0.5 * 2 * sum(penalties)

    options = {"rank": 3, "hidden": 5, "branches": 2}
    drawn, free = (
        adapter("colin", 12, **options),
        adapter("colin", 12, **options, orthogonality=0.0),
    )
    for module in (drawn, free):
        module(tap(12), HEIGHT, WIDTH).sum().backward()
    loss(free).backward()
    for (name, one), two in zip(drawn.named_parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


ZERO_START = ("mona", "lorand", "colin", "conv_adapter")


@pytest.mark.parametrize("name", sorted({name for name, *_ in EQUATIONS}))
def test_a_new_adapter_adds_nothing_where_it_should_and_can_learn(name):
    torch.manual_seed(0)
    module, z = get_adapter_kind(name).module, torch.randn(1, HEIGHT * WIDTH, 48)
    if "frozen" in get_adapter_kind(name).given:
        module = partial(module, frozen=FrozenMatrix(SwinBlock(48, 2, 3, 0, 2.0)))
    if name in ZERO_START:
        assert module(48)(z, HEIGHT, WIDTH).abs().max() > 0  # as published
    options = {"zero_start": True} if name in ZERO_START else {}
    new = module(48, **options)
    out = new(z, HEIGHT, WIDTH)
    assert torch.equal(out, torch.zeros_like(z))
    (out - z).square().sum().backward()
    gradients = [p.grad for p in new.parameters() if p.grad is not None]
    assert max(g.abs().max() for g in gradients) > 0


def test_starts_are_the_authors():
    torch.manual_seed(0)
    mona, lorand, colin, conv, adaptformer = (
        get_adapter_kind(name).module(64)
        for name in ("mona", "lorand", "colin", "conv_adapter", "adaptformer")
    )
    assert torch.equal(mona.gamma_norm, torch.full((64,), 1e-6))
    assert torch.equal(mona.gamma_tap, torch.ones(64)) and mona.down.weight.shape == (64, 64)
    assert 0.018 < mona.up.weight.std() < 0.022
    assert torch.equal(conv.alpha, torch.ones(64)) and conv.conv.weight.shape == (8, 8, 7, 7)
    # Uniform between ±1/√(second dimension), of which the largest comes close to the bound.
    for matrices, bound in ((lorand.down.p, 8**-0.5), (lorand.up.q, 64**-0.5)):
        assert 0.95 * bound < matrices.abs().max() <= bound
    assert lorand.down.p.shape == (4, 64, 8) and lorand.down.q.shape == (4, 8, 32)
    assert adaptformer.scale == 0.1 and 0.95 / 8 < adaptformer.down_proj.weight.abs().max() <= 1 / 8
    # Singular values of a random matrix descend; 4 branches have 28 of them each.
    assert colin.sigma.shape == (4, 28) and (colin.sigma.diff(dim=1) <= 0).all()
    assert torch.sigmoid(colin.gamma).unique().tolist() == [0.5]


@pytest.mark.parametrize("dim", [48, 96, 37])
def test_factors_of_krona_are_nearly_square(dim):
    module = get_adapter_kind("krona").module(dim)
    rows = {48: 6, 96: 8, 37: 1}[dim]
    assert module.a.shape == (rows, rows) and module.b.shape == (dim // rows, dim // rows)


def test_krona_keeps_only_maps_of_its_input_width():
    """The product of 512×512 would show among what autograd keeps."""
    module, z = get_adapter_kind("krona").module(512), torch.randn(1, 10, 512)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        module(z, 2, 5)
    assert max(sizes) <= 10 * 512


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"adapter": "krona", "rows": 5}, ["rows 5", "16 channels"]),
        ({"adapter": "krona", "columns": 32}, ["columns 32", "16 channels"]),
        ({"adapter": "colin"}, ["rank 28", "at most 16"]),
        ({"adapter": "colin", "rank": 8, "hidden": 6}, ["rank 8", "at most 6"]),
        ({"adapter": "colin", "rank": 8, "kernel": 2}, ["kernel 2"]),
        ({"adapter": "lorand", "reduction": 3}, ["reduction 3", "16 channels"]),
        ({"adapter": "conv_adapter", "reduction": 5}, ["reduction 5", "16 channels"]),
        ({"adapter": "conv_adapter", "kernel": 4}, ["kernel 4"]),
        ({"adapter": "mona", "rank": 0}, ["rank=0"]),
        ({"adapter": "lora", "rank": 17}, ["rank 17", "at most 16"]),
        ({"adapter": "smoa", "rank": 17}, ["rank 17", "at most 16"]),
        ({"adapter": "smoa", "blocks": 9}, ["blocks 9", "rank 8"]),
        ({"adapter": "smoa", "shared": True}, ["'smoa'", "shared true"]),
        ({"adapter": "dtl", "rank": 17}, ["rank 17", "at most 16"]),
        ({"adapter": "dtl", "kernel": 4}, ["kernel 4"]),
        ({"adapter": "dtl", "placement": "inside"}, ["'dtl'", "cannot stand inside", "mona"]),
        ({"adapter": "ladder", "placement": "inside"}, ["'ladder'", "cannot stand inside"]),
        ({"adapter": "ladder", "reduction": 3}, ["reduction 3", "16 channels"]),
        ({"adapter": "ladder", "reduction": 16}, ["reduction 16", "at most 8"]),
        ({"adapter": "ladder", "window": 1}, ["window 1"]),
        ({"adapter": "mea", "rank": 6}, ["groups 2", "rank 6"]),
        ({"adapter": "lora", "outputs": 9}, ["'outputs'", "'lora'"]),
        ({"adapter": "mona", "dropout": 1.5}, ["dropout 1.5"]),
        ({"adapter": "adaptformer", "dropout": -0.5}, ["dropout -0.5"]),
        ({"adapter": "adaptformer", "reduction": 4}, ["'reduction'", "'adaptformer'"]),
        ({"adapter": "monna"}, ["'monna'", "mona"]),
    ],
)
def test_wrong_options_are_refused_in_one_line(settings, values):
    with pytest.raises(UserError) as caught:
        E3VABackbone("swin_nano", settings)
    assert all(value in caught.value.line for value in values), caught.value.line


# --- the authors' own code


def authors(path: str, *names: str, all_helpers: bool = True) -> list:
    """Return classes and functions of a file in a checkout, without the file's imports."""
    root = os.environ.get("AUTHORS_CODE")
    if root is None or not (Path(root) / path).is_file():
        pytest.skip(f"no {path}: AUTHORS_CODE names no folder with this checkout")
    wanted = [
        node
        for node in ast.parse((Path(root) / path).read_text()).body
        if getattr(node, "name", "") in names
        or (all_helpers and isinstance(node, ast.Assign | ast.FunctionDef))
    ]
    scope = {"torch": torch, "nn": nn, "F": F, "math": math, "init": nn.init}
    scope |= {"BaseModule": nn.Module, "Tensor": torch.Tensor, "Parameter": nn.Parameter}
    code = "from __future__ import annotations\n" + "\n".join(map(ast.unparse, wanted))
    exec(code, scope)
    return [scope[name] for name in names]


def compare(ours, theirs, pairs, call, skip=True):
    """Give both equal weights, and compare outputs and the gradients of z and of the weights.

    ``pairs`` are their weights, ours perhaps parts of a parameter; with ``skip`` theirs adds z.
    """
    theirs = theirs.double().eval()
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own.view_as(other))
    z, their_z = tap(64).requires_grad_(), tap(64).requires_grad_()
    out, their_out = ours(z, HEIGHT, WIDTH), call(theirs, their_z)
    torch.testing.assert_close(out, their_out - (their_z if skip else 0))
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    ((their_out - (their_z if skip else 0)) * weight).sum().backward()
    torch.testing.assert_close(z.grad, their_z.grad)
    for own, other in pairs:
        torch.testing.assert_close(gradient(ours, own), other.grad.view(own.shape))


def gradient(module, weight):
    """Return the gradient of a parameter, or of a part of a stacked one."""
    if weight.is_leaf:
        return weight.grad
    base, index = weight._base, weight.storage_offset() // weight.numel()
    return next(p for p in module.parameters() if p is base).grad[index]


def test_mona_is_the_authors():
    folder = "mona/Swin-Transformer-Object-Detection/mmdet/models/backbones"
    _, mona = authors(f"{folder}/swin_transformer_mona.py", "MonaOp", "Mona")
    ours, theirs = adapter("mona", 64), mona(64, 8)
    op, convs = theirs.adapter_conv, ours.convs
    layers = [
        *zip(convs, (op.conv1, op.conv2, op.conv3), strict=True),
        (ours.pointwise, op.projector),
        (ours.norm, theirs.norm),
        (ours.down, theirs.project1),
        (ours.up, theirs.project2),
    ]
    pairs = [(ours.gamma_norm, theirs.gamma), (ours.gamma_tap, theirs.gammax)]
    pairs += [
        (a, b) for one, two in layers for a, b in ((one.weight, two.weight), (one.bias, two.bias))
    ]
    compare(ours, theirs, pairs, lambda m, z: m(z, (HEIGHT, WIDTH)))


def test_adaptformer_is_the_authors():
    (theirs,) = authors("AdaptFormer/models/adapter.py", "Adapter")
    ours = adapter("adaptformer", 64, rank=5)
    theirs = theirs(
        d_model=64,
        bottleneck=5,
        init_option="lora",
        adapter_scalar="0.1",
        adapter_layernorm_option="none",
    )
    pairs = [
        (ours.down_proj.weight, theirs.down_proj.weight),
        (ours.down_proj.bias, theirs.down_proj.bias),
        (ours.up_proj.weight, theirs.up_proj.weight),
        (ours.up_proj.bias, theirs.up_proj.bias),
    ]
    compare(ours, theirs, pairs, lambda m, z: m(z))


def test_conv_adapter_is_the_authors():
    (theirs,) = authors("Conv-Adapter/models/tuning_modules/conv_adapter.py", "ConvAdapter")
    ours = adapter("conv_adapter", 64)
    theirs = theirs(64, 64, 8, kernel_size=7, padding=3, groups=8, act_layer=nn.GELU)
    pairs = [
        (ours.conv.weight, theirs.conv1.weight),
        (ours.conv.bias, theirs.conv1.bias),
        (ours.pointwise.weight, theirs.conv2.weight),
        (ours.pointwise.bias, theirs.conv2.bias),
        (ours.alpha, theirs.se),
    ]

    def call(m, z):
        return m(z.transpose(1, 2).unflatten(2, (HEIGHT, WIDTH))).flatten(2).transpose(1, 2)

    compare(ours, theirs, pairs, call, skip=False)


def test_older_conv_adapter_is_the_authors():
    (theirs,) = authors("Conv-Adapter/models/tuning_modules/conv_adapter.py", "ConvAdapterDesign1")
    ours = adapter("conv_adapter", 64, pointwise_first=True)
    nn.init.ones_(ours.alpha)  # theirs is a constant
    theirs = theirs(64, 64, 8, kernel_size=7, padding=3, groups=8, act_layer=nn.GELU)
    layers = (ours.narrow, theirs.conv1), (ours.conv, theirs.conv2), (ours.pointwise, theirs.conv3)
    pairs = [(a, b) for x, y in layers for a, b in ((x.weight, y.weight), (x.bias, y.bias))]

    def call(m, z):
        return m(z.transpose(1, 2).unflatten(2, (HEIGHT, WIDTH))).flatten(2).transpose(1, 2)

    compare(ours, theirs, pairs, call, skip=False)


@pytest.mark.parametrize("kernel", [0, 5])
def test_dtl_is_the_authors(kernel):
    lora, swish = authors("DTL/models/swin_transformer.py", "LoRALayer", "swish", all_helpers=False)
    ours = adapter("dtl", 64, tap_count=3, kernel=kernel)
    theirs = nn.ModuleList(lora(64, 64, 4) for _ in range(3))
    pairs = [
        (own.weight, other)
        for down, up, layer in zip(ours.down, ours.up, theirs, strict=True)
        for own, other in ((down, layer.lora_A), (up, layer.lora_B))
    ]
    if kernel:
        fusion = nn.Conv2d(64, 64, kernel, padding="same", groups=64, bias=None)
        pairs.append((ours.conv.weight, fusion.weight))
        theirs.append(fusion.double())

    def call(m, z):
        total = sum(layer(z * (tap + 1)) for tap, layer in enumerate(m[:3]))
        total = swish(total, 100.0).transpose(1, 2).unflatten(2, (HEIGHT, WIDTH))
        return (m[3](total) if kernel else total).flatten(2).transpose(1, 2)

    def own(z, height, width):
        return ours([z, 2 * z, 3 * z], None, height, width)

    own.parameters = ours.parameters
    compare(own, theirs, pairs, call, skip=False)


def test_lorand_is_the_authors():
    folder = "CoLin/MMDetection/mmdet/models/backbones"
    _, theirs = authors(f"{folder}/swin_lorand.py", "Lorand_Multi", "Lorand")
    ours, theirs = adapter("lorand", 64), theirs(64, 2)
    pairs = []
    for own, other in ((ours.down, theirs.project1), (ours.up, theirs.project2)):
        pairs.append((own.bias, other.bias))
        for i in range(4):
            for name, stacked in (("A", own.p), ("g", own.k), ("B", own.q)):
                pairs.append((stacked[i], other.param_dict[f"{name}{i}"]))
    compare(ours, theirs, pairs, lambda m, z: m(z))


@pytest.mark.parametrize("training", [False, True])
def test_colin_is_the_authors(training):
    folder = "CoLin/MMDetection/mmdet/models/backbones"
    _, theirs = authors(f"{folder}/swin_colin.py", "CLP_Multi", "CoLin")
    # The authors add the penalty's gradient in training only.
    ours, theirs = adapter("colin", 64, orthogonality=0.5 * training), theirs(64)
    one, two = theirs.project1, theirs.project2
    pairs = [
        (ours.conv.weight, theirs.inner_op.weight),
        (ours.conv.bias, theirs.inner_op.bias),
        (ours.gamma, theirs.inner_scale),
        (ours.down_bias, one.bias),
        (ours.up_bias, two.bias),
        (ours.p_down, one.param_dict["A"]),
        (ours.q_down, one.param_dict["B"]),
        (ours.p_up, two.param_dict["A"]),
        (ours.q_up, two.param_dict["B"]),
        *((ours.sigma[i], one.param_dict[f"g{i}"]) for i in range(4)),
    ]

    def call(m, z):
        m.train(training)
        return m(z, (HEIGHT, WIDTH))

    compare(ours, theirs, pairs, call)
