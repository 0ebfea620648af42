"""Adapters inside the trunk stand where their papers put them, and gradients pass through it."""

import copy
import json

import pytest
import torch
from torch import nn

from e3va import E3VABackbone, UserError, highway_config
from e3va.adapter_files.files import load_adapter, save_adapter
from e3va.highway.config import read_highway
from e3va.highway.registry import adapter_kinds, register_adapter_kind
from e3va.swin.presets import SwinPreset
from e3va.swin.windows import shift_mask

from .test_published_adapters import smoa_change

TINY = SwinPreset(embed_dim=8, depths=(2, 1), num_heads=(2, 2), window=3, mlp_ratio=2.0)
INSIDE = [name for name, kind in adapter_kinds().items() if kind.inside]
IMAGES = torch.rand(2, 3, 41, 30, generator=torch.Generator().manual_seed(0))


def backbone_with(kind: str, std: float = 0.2, **settings) -> E3VABackbone:
    """Make a backbone in float64 with random adapters inside."""
    torch.manual_seed(0)
    if "rank" in adapter_kinds()[kind].defaults:
        settings.setdefault("rank", 4)
    config = {"adapter": kind, "placement": "inside", **settings}
    backbone = E3VABackbone(TINY, config, out_features=("p0", "p1")).double().eval()
    for parameter in backbone.trunk.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, parameter in backbone.highway.named_parameters():
        if ".inside." in name and std:
            nn.init.normal_(parameter, std=std)
    return backbone


def expected(backbone, block_of) -> list[torch.Tensor]:
    """Compute the pyramid with ``block_of(block, adapters, x, attend)`` for each block.

    ``attend`` maps the normed stream [B, H, W, C] to the attention's output.
    """
    trunk, outputs = backbone.trunk, []
    x = trunk.patch_embed(IMAGES.double())
    for layer, stage in zip(trunk.layers, backbone.highway.stages, strict=True):
        height, width = x.shape[1:3]
        mask = shift_mask(height, width, layer.window, layer.shift, x.device)
        for block, adapters in zip(layer.blocks, stage.inside, strict=True):

            def attend(normed, block=block, mask=mask):
                return block.window_attention(normed, mask)

            def adapt(point, source, adapters=adapters, height=height, width=width):
                return adapters[point](source.flatten(1, 2), height, width).view_as(source)

            x = block_of(block, adapt, x, attend)
        outputs.append(stage.out_norm(x).permute(0, 3, 1, 2))
        if layer.downsample is not None:
            merged = layer.downsample(x.flatten(1, 2), height, width)
            x = merged.unflatten(1, (-(-height // 2), -(-width // 2)))
    return outputs


def after_each_sublayer(block, adapt, x, attend):
    attended = attend(block.norm1(x))
    x = x + attended + adapt("attended", attended)
    projected = block.mlp(block.norm2(x))
    return x + projected + adapt("projected", projected)


def on_the_stream(block, adapt, x, attend):
    x = x + attend(block.norm1(x))
    x = x + adapt("after_msa", x)
    x = x + block.mlp(block.norm2(x))
    return x + adapt("after_mlp", x)


def beside_the_mlp(block, adapt, x, attend):
    x = x + attend(block.norm1(x))
    return x + block.mlp(block.norm2(x)) + adapt("projected", x)


def beside_the_mlp_normed(block, adapt, x, attend):
    x = x + attend(block.norm1(x))
    return x + block.mlp(block.norm2(x)) + adapt("projected", block.norm2(x))


def beside_the_attention(block, adapt, x, attend):
    x = x + attend(block.norm1(x)) + adapt("attended", block.norm1(x))
    return x + block.mlp(block.norm2(x))


PLACES = {
    "adaptformer": beside_the_mlp,  # the authors' code
    "bottleneck": after_each_sublayer,  # arXiv 1902.00751, figure 2
    "colin": on_the_stream,  # the authors' code
    "conv": after_each_sublayer,
    "conv_adapter": beside_the_attention,  # the authors' code for Swins
    "dual_low_rank": after_each_sublayer,
    "krona": beside_the_mlp_normed,  # arXiv 2212.10650, in parallel to the MLP
    "lorand": after_each_sublayer,  # the authors' code
    "mea": on_the_stream,
    "mona": on_the_stream,  # the authors' code
}


@pytest.mark.parametrize("kind", PLACES)
def test_adapters_stand_where_their_papers_put_them(kind):
    backbone = backbone_with(kind)
    ours = list(backbone(IMAGES.double()).values())
    theirs = expected(backbone, PLACES[kind])
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)
    parameters = list(backbone.highway.parameters())
    gradients = [
        torch.autograd.grad(sum(out.cos().sum() for out in outputs), parameters)
        for outputs in (ours, theirs)
    ]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", ["lora", "smoa"])
def test_beside_a_matrix_stands_a_change_of_it(kind):
    backbone = backbone_with(kind, rank=3, alpha=6.0)
    merged = E3VABackbone(TINY, "frozen", memory="plain", out_features=("p0", "p1")).double()
    merged.trunk.load_state_dict(backbone.trunk.state_dict())
    with torch.no_grad():
        for layer, stage in zip(merged.trunk.layers, backbone.highway.stages, strict=True):
            for block, adapters in zip(layer.blocks, stage.inside, strict=True):
                for linear, point in ((block.attn.qkv, "qkv"), (block.mlp.fc1, "fc1")):
                    own = adapters[point]
                    if kind == "smoa":
                        linear.weight += 2 * smoa_change(own, linear.weight.clone())
                    else:
                        linear.weight += 2 * own.lora_B.weight @ own.lora_A.weight
    ours, theirs = backbone(IMAGES.double()), merged(IMAGES.double())
    for one, two in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(one, two)


def test_lora_is_that_of_peft():
    peft = pytest.importorskip("peft")
    backbone = backbone_with("lora", rank=3, alpha=6.0)
    theirs = E3VABackbone(TINY, "full", out_features=("p0", "p1")).double()
    theirs.trunk.load_state_dict(backbone.trunk.state_dict())
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["qkv", "fc1"])
    peft.inject_adapter_in_model(config, theirs.trunk)
    pairs = []
    for layer, stage in zip(theirs.trunk.layers, backbone.highway.stages, strict=True):
        for block, adapters in zip(layer.blocks, stage.inside, strict=True):
            for other, ours in (
                (block.attn.qkv, adapters["qkv"]),
                (block.mlp.fc1, adapters["fc1"]),
            ):
                pairs.append((ours.lora_A.weight, other.lora_A["default"].weight))
                pairs.append((ours.lora_B.weight, other.lora_B["default"].weight))
    with torch.no_grad():
        for ours, other in pairs:
            other.copy_(ours)
    for model in (backbone, theirs):
        sum(out.cos().sum() for out in model(IMAGES.double()).values()).backward()
    for ours, other in pairs:
        torch.testing.assert_close(ours.grad, other.grad)


@pytest.mark.parametrize("kind", INSIDE)
def test_only_the_highway_gets_gradients_and_the_trunk_does_not_change(kind):
    backbone = backbone_with(kind)
    before = copy.deepcopy(backbone.trunk.state_dict())
    backbone.train()
    assert not backbone.trunk.training
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(out.cos().sum() for out in backbone(IMAGES.double()).values()).backward()
    backbone.trunk.check_frozen(optimizer)
    optimizer.step()
    for name, parameter in backbone.highway.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    after = backbone.trunk.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", INSIDE)
def test_a_new_backbone_is_the_plain_trunk(kind):
    zero = {"zero_start": True} if "zero_start" in adapter_kinds()[kind].defaults else {}
    backbone = backbone_with(kind, std=0, **zero)
    plain = E3VABackbone(TINY, "frozen", memory="plain", out_features=("p0", "p1")).double()
    plain.trunk.load_state_dict(backbone.trunk.state_dict())
    ours, theirs = backbone(IMAGES.double()), plain(IMAGES.double())
    for one, two in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_the_road_and_not_the_adapter_saves_memory():
    """The same adapters keep several times the bytes inside, where the trunk's activations stay."""

    def kept(placement):
        backbone = E3VABackbone("swin_nano", {"adapter": "bottleneck", "placement": placement})
        storages = {}

        def keep(tensor):
            if not isinstance(tensor, nn.Parameter) and tensor.grad_fn is not None:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = backbone(torch.rand(1, 3, 64, 64))
            assert all(out.requires_grad for out in outputs.values())
        return sum(storages.values())

    assert kept("inside") > 2 * kept("highway") > 0


@pytest.mark.parametrize("memory", ["standard", "lean", "plain"])
def test_every_memory_mode_computes_the_same(memory):
    settings = {"adapter": "mona", "rank": 3, "placement": "inside"}
    torch.manual_seed(0)
    backbone = E3VABackbone(TINY, settings, out_features=("p0", "p1"), memory=memory).eval()
    reference = E3VABackbone(TINY, settings, out_features=("p0", "p1"), memory="plain").eval()
    reference.load_state_dict(backbone.state_dict())
    backbone.prepare(mixed=False)
    for one, two in zip(backbone(IMAGES).values(), reference(IMAGES).values(), strict=True):
        assert torch.equal(one, two)
    with torch.autocast("cpu", torch.bfloat16):
        backbone.prepare(mixed=True)
        sum(out.sum() for out in backbone(IMAGES).values()).backward()


@pytest.mark.parametrize("kind", INSIDE)
def test_adapter_files_and_tensors_give_the_config_back(kind, tmp_path):
    config = {"adapter": kind, "placement": "inside"}
    backbone = E3VABackbone("swin_mini", config)
    described = backbone.config.highway
    assert highway_config(**json.loads(json.dumps(described.to_dict()))) == described
    assert "placement inside" in str(described)
    assert read_highway(backbone.highway.state_dict(), 48) == described
    for parameter in backbone.highway.parameters():
        nn.init.normal_(parameter)
    save_adapter(backbone, tmp_path / "adapter")
    other = E3VABackbone("swin_mini", config, trunk=backbone.trunk)
    load_adapter(other, tmp_path / "adapter")
    state = other.highway.state_dict()
    for name, tensor in backbone.highway.state_dict().items():
        assert torch.equal(tensor, state[name])
    with pytest.raises(UserError) as caught:
        load_adapter(E3VABackbone("swin_mini", {"adapter": kind}), tmp_path / "adapter")
    assert "placement" in caught.value.line


def test_settings_of_the_road_have_no_effect_inside():
    config = highway_config(adapter="mona", placement="inside", taps="sublayer", form="parallel")
    assert config == highway_config(adapter="mona", placement="inside")
    assert highway_config("frozen", placement="inside") == highway_config("frozen")
    with pytest.raises(UserError) as caught:
        highway_config(placement="outside")
    assert "'outside'" in caught.value.line and "highway, inside" in caught.value.line


def test_a_module_from_outside_stands_after_each_sublayer():
    class Gate(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.gate = nn.Parameter(torch.full((dim,), 0.5))

        def forward(self, z, height, width):
            return z * self.gate

    settings = {"placement": "inside"}
    backbone = E3VABackbone(TINY, settings, make_adapter=Gate, out_features=("p0", "p1")).double()
    ours = list(backbone(IMAGES.double()).values())
    for one, two in zip(ours, expected(backbone, after_each_sublayer), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("inside", [{"norm1": "value"}, {"attended": "before"}])
def test_an_unknown_place_is_refused(inside):
    with pytest.raises(ValueError, match=next(iter(inside))):
        register_adapter_kind("new", lambda dim: nn.Identity(), source="", inside=inside)
    assert "new" not in adapter_kinds()
