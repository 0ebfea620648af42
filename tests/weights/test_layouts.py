"""One Swin in every library's own model and file: the same stage outputs, the same fingerprint."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from e3va import PRESETS, SwinTrunk
from e3va.swin.presets import SwinPreset
from e3va.weights.checkpoint import load_file, model_state
from e3va.weights.layouts import find_swins, other_network
from e3va.weights.loading import find_trunk, load_trunk, missing_trunk, trunk_state
from e3va.weights.origin import fingerprint

# Depths that differ, so that no stage can be taken for another.
PRESET = SwinPreset(16, (2, 1, 3, 2), (1, 2, 4, 8), window=4, pretrain_size=256)
SIZES = {"embed_dim": 16, "depths": (2, 1, 3, 2), "num_heads": (1, 2, 4, 8)}
# The libraries differ where windows do not tile a map or one window covers it; here they do not.
TILED = (256, 256)


@dataclass
class Source:
    """A library's model: its weights to save, and how to run it."""

    state: dict[str, Tensor]
    run: Callable[[Tensor], list[Tensor]]  # the four stages' outputs, [B, H, W, C] or [B, T, C]
    size: tuple[int, int] = TILED
    save: Callable | None = None


def randomise(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def swin(absolute: bool = False) -> SwinTrunk:
    torch.manual_seed(1)
    return randomise(SwinTrunk(replace(PRESET, absolute_position=absolute)))


def fill(own: SwinTrunk, embedding, norm, blocks, mergings) -> None:
    """Copy the trunk's weights into another library's modules, one by one."""
    pairs = [(own.patch_embed.proj, embedding), (own.patch_embed.norm, norm)]
    for stage, others in zip(own.layers, blocks, strict=True):
        for block, other in zip(stage.blocks, others, strict=True):
            modules = (block.norm1, block.attn.qkv, block.attn.proj, block.norm2)
            table = block.attn.relative_position_bias_table
            other["table"].data = table.detach().clone()
            pairs += zip((*modules, block.mlp.fc1, block.mlp.fc2), other["modules"], strict=True)
    for stage, other in zip(own.layers[:-1], mergings, strict=True):
        pairs += [(stage.downsample.norm, other.norm)]
        pairs += [(stage.downsample.reduction, other.reduction)]
    for mine, theirs in pairs:
        targets = theirs if isinstance(theirs, tuple) else (theirs,)  # query, key and value
        for name, value in mine.named_parameters():
            for target, part in zip(targets, value.detach().chunk(len(targets)), strict=True):
                assert getattr(target, name).shape == part.shape
                getattr(target, name).data = part.clone()


def usual(block) -> dict:
    modules = (block.norm1, block.attn.qkv, block.attn.proj, block.norm2)
    return {
        "table": block.attn.relative_position_bias_table,
        "modules": (*modules, block.mlp.fc1, block.mlp.fc2),
    }


def capture(model: nn.Module, modules, of_input: bool = False):
    """Return a function that runs ``model`` and returns the outputs, or inputs, of ``modules``."""

    def run(images: Tensor) -> list[Tensor]:
        seen = []
        hooks = [
            m.register_forward_hook(
                lambda _, given, out: seen.append(given[0] if of_input else out)
            )
            for m in modules
        ]
        model(images)
        for hook in hooks:
            hook.remove()
        return seen

    return run


def torchvision_swin() -> Source:
    swin_module = pytest.importorskip("torchvision.models.swin_transformer")
    model = randomise(
        swin_module.SwinTransformer([4, 4], 16, [2, 1, 3, 2], [1, 2, 4, 8], [4, 4], num_classes=5)
    )
    stages, mergings = list(model.features[1::2]), list(model.features[2::2])
    blocks = [
        [
            {
                "table": b.attn.relative_position_bias_table,
                "modules": (b.norm1, b.attn.qkv, b.attn.proj, b.norm2, b.mlp[0], b.mlp[3]),
            }
            for b in stage
        ]
        for stage in stages
    ]
    fill(swin(), model.features[0][0], model.features[0][2], blocks, mergings)
    return Source(model.state_dict(), capture(model, stages))


def timm_swin(features_only: bool = False) -> Source:
    timm = pytest.importorskip("timm")
    options = {"window_size": 4, "img_size": 256, "features_only": features_only, **SIZES}
    model = randomise(timm.create_model("swin_tiny_patch4_window7_224", **options))
    stages = [model[f"layers_{s}"] for s in range(4)] if features_only else list(model.layers)
    blocks = [[usual(block) for block in stage.blocks] for stage in stages]
    embedding = model["patch_embed"] if features_only else model.patch_embed
    fill(swin(), embedding.proj, embedding.norm, blocks, [s.downsample for s in stages[1:]])
    return Source(model.state_dict(), capture(model, stages))


def transformers_swin(of_memory: bool = False, absolute: bool = False) -> Source:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=256,
        window_size=4,
        use_absolute_embeddings=absolute,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        **SIZES,
    )
    model = randomise(transformers.SwinBackbone(config))
    own, inner = swin(absolute), model.swin
    stages = inner.encoder.layers
    fill(
        own,
        inner.embeddings.patch_embeddings.projection,
        inner.embeddings.norm,
        [[transformers_block(block) for block in stage.blocks] for stage in stages],
        [stage.downsample for stage in stages[:-1]],
    )
    if absolute:
        grid = own.absolute_pos_embed.detach()
        inner.embeddings.position_embeddings.data = grid.flatten(2).transpose(1, 2).clone()

    def run(images: Tensor) -> list[Tensor]:
        maps = model(images, output_hidden_states=True).hidden_states[1:]
        return [m.permute(0, 2, 3, 1) for m in maps]

    # It pads as the trunk does; only the position embedding needs images of its own size.
    size = TILED if absolute else (100, 140)
    return Source(model.state_dict(), run, size, None if of_memory else model.save_pretrained)


def transformers_block(block) -> dict:
    attention = block.attention
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    before = (block.layernorm_before, qkv, attention.o_proj, block.layernorm_after)
    return {
        "table": attention.relative_position_bias.relative_position_bias_table,
        "modules": (*before, block.mlp.fc1, block.mlp.fc2),
    }


def detectron2_swin(absolute: bool = False) -> Source:
    modeling = pytest.importorskip("detectron2.modeling")
    model = modeling.SwinTransformer(
        window_size=4, ape=absolute, pretrain_img_size=256, out_indices=(0, 1, 2, 3), **SIZES
    )
    own = swin(absolute)
    randomise(model).load_state_dict(own.state_dict(), strict=False)
    norms = [getattr(model, f"norm{s}") for s in range(4)]
    state = {f"backbone.bottom_up.{name}": value for name, value in model.state_dict().items()}
    run = capture(model, norms, of_input=True)
    return Source(state, lambda images: run(images), (100, 140))


class UnfoldMerging(nn.Module):
    """Patch merging of mmdetection, by ``nn.Unfold``; its weights have another order."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        x = nn.functional.pad(x, (0, width % 2, 0, height % 2))
        patches = nn.Unfold(kernel_size=2, stride=2)(x)  # [B, 4C, T]
        return self.reduction(self.norm(patches.transpose(1, 2)))


def to_unfold_order(value: Tensor) -> Tensor:
    """Reorder the last axis from the official order (token by token, column before row)."""
    dim = value.shape[-1] // 4
    result = torch.empty_like(value)
    for row in (0, 1):
        for column in (0, 1):
            for channel in range(dim):
                there = channel * 4 + row * 2 + column
                result[..., there] = value[..., (column * 2 + row) * dim + channel]
    return result


def mmdetection_state(own: SwinTrunk) -> dict[str, Tensor]:
    """Return the weights under the names of ``mmdet/models/backbones/swin.py``."""
    words = {"patch_embed.proj.": "patch_embed.projection.", ".attn.": ".attn.w_msa."}
    words |= {".mlp.fc1.": ".ffn.layers.0.0.", ".mlp.fc2.": ".ffn.layers.1."}
    state = {}
    for name, value in own.state_dict().items():
        if ".downsample." in name:
            value = to_unfold_order(value)
        for mine, theirs in words.items():
            name = name.replace(mine, theirs)
        if name.startswith("layers."):
            name = "stages." + name.removeprefix("layers.")
        state[f"backbone.{name}"] = value
    state |= {"backbone.norm1.weight": torch.ones(32), "neck.convs.0.weight": torch.ones(3)}
    return state


def mmdetection_swin(absolute: bool = False) -> Source:
    own = swin(absolute)
    state = mmdetection_state(own)
    if absolute:
        grid = state["backbone.absolute_pos_embed"]
        state["backbone.absolute_pos_embed"] = grid.flatten(2).transpose(1, 2)
    for index, stage in enumerate(own.layers[:-1]):
        merging = UnfoldMerging(PRESET.dims[index])
        prefix = f"backbone.stages.{index}.downsample."
        names = ("norm.weight", "norm.bias", "reduction.weight")
        merging.load_state_dict({name: state[prefix + name] for name in names})
        stage.downsample = merging
    own.fast = False  # runs the plain modules

    def run(images: Tensor) -> list[Tensor]:
        return [stage.out.unflatten(1, (stage.height, stage.width)) for stage in own.stages(images)]

    return Source(state, run, (100, 140))


SOURCES: dict[str, tuple[str, Callable[[], Source]]] = {
    "torchvision": ("torchvision", torchvision_swin),
    "timm": ("timm", timm_swin),
    "timm, features": ("timm (features only)", lambda: timm_swin(features_only=True)),
    "transformers, saved": ("Hugging Face transformers", transformers_swin),
    "transformers, in memory": ("Hugging Face transformers", lambda: transformers_swin(True)),
    "transformers, absolute": (
        "Hugging Face transformers",
        lambda: transformers_swin(absolute=True),
    ),
    "detectron2": ("official", detectron2_swin),
    "detectron2, absolute": ("official", lambda: detectron2_swin(True)),
    "mmdetection": ("mmdetection", mmdetection_swin),
    "mmdetection, absolute": ("mmdetection", lambda: mmdetection_swin(True)),
}


def relative_difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("name", SOURCES)
def test_a_librarys_file_gives_its_own_stage_outputs(name, tmp_path):
    layout, build = SOURCES[name]
    absolute = "absolute" in name
    with torch.no_grad():
        source = build()
        path = tmp_path / "swin.pth"
        if source.save:
            source.save(tmp_path)
            path = tmp_path / "model.safetensors"
        else:
            torch.save({"model": source.state}, path)
        trunk = SwinTrunk(replace(PRESET, absolute_position=absolute))
        loaded = load_trunk(trunk, model_state(load_file(path), str(path)), str(path))
        images = torch.randn(2, 3, *source.size)
        expected = source.run(images)
        found = list(trunk.stages(images))
    assert (loaded.layout, loaded.tensors) == (layout, len(trunk.state_dict()))
    assert loaded.notes == ()
    assert trunk.origin.fingerprint == fingerprint(swin(absolute).state_dict())
    assert trunk.origin.source == path.name
    for stage, want in zip(found, expected, strict=True):
        assert relative_difference(stage.out, want.reshape(stage.out.shape)) < 1e-5


def test_patch_merging_of_mmdetection_at_odd_sizes():
    state, own = mmdetection_state(swin()), swin().layers[1].downsample
    merging = UnfoldMerging(32)
    names = ("norm.weight", "norm.bias", "reduction.weight")
    prefix = "backbone.stages.1.downsample."
    merging.load_state_dict({name: state[prefix + name] for name in names})
    x = torch.randn(2, 7 * 5, 32)
    with torch.no_grad():
        assert relative_difference(own(x, 7, 5), merging(x, 7, 5)) < 1e-5
        merging.load_state_dict(own.state_dict())  # without reordering it is another function
        assert relative_difference(own(x, 7, 5), merging(x, 7, 5)) > 0.1


def test_classifiers_of_transformers_have_the_same_names(tmp_path):
    """Published files hold the classifier, with the prefix ``swin.``."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(image_size=256, window_size=4, num_labels=3, **SIZES)
    model = transformers.SwinForImageClassification(config)
    inner = transformers_swin().state
    state = {k: v for k, v in inner.items() if k.startswith("swin.") and "layernorm." not in k}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert "swin.encoder.layers.0.blocks.0.attention.self.query.weight" in state
    for one in (state, model.state_dict()):
        assert find_trunk(one) == "swin."
        assert fingerprint(trunk_state(one, "swin.")) == fingerprint(swin().state_dict())


NAMES = st.lists(st.from_regex(r"[a-z_]{1,8}[0-9]?", fullmatch=True), max_size=4)


@settings(max_examples=40, deadline=None)
@given(names=NAMES, other=NAMES)
def test_mmdetection_and_official_are_found_under_any_prefix(names, other):
    prefix = "".join(f"{name}." for name in names)
    official = {prefix + name: value for name, value in STATE.items()}
    theirs = {prefix + name.removeprefix("backbone."): value for name, value in UNFOLDED.items()}
    more = {f"{name}.weight": torch.ones(2) for name in other}
    for state, layout in ((official, "official"), (theirs, "mmdetection")):
        found = find_swins({**more, **state})
        assert {key: value.name for key, value in found.items()} == {prefix: layout}
        assert fingerprint(trunk_state(state, prefix)) == PRINT


STATE = swin().state_dict()
UNFOLDED = mmdetection_state(swin())
PRINT = fingerprint(STATE)


@pytest.mark.parametrize("name", SOURCES)
def test_each_layout_is_recognized_under_a_prefix(name):
    layout, build = SOURCES[name]
    state = {f"module.net.{key}": value for key, value in build().state.items()}
    ((prefix, found),) = find_swins(state).items()
    assert found.name == layout and prefix.startswith("module.net.")
    expected = swin("absolute" in name).state_dict()
    assert fingerprint(trunk_state(state, prefix)) == fingerprint(expected)


def test_older_timm_files_are_official():
    state = {**STATE, "head.weight": torch.ones(5, 128), "norm.bias": torch.ones(128)}
    assert find_swins(state)[""].name == "official"
    tables = {k: v for k, v in state.items() if "downsample" not in k}
    assert find_swins(tables)[""].name == "official"  # incomplete, but not of timm's layout


def swins_of_another_kind():
    with torch.device("meta"):
        torchvision = pytest.importorskip("torchvision.models")
        yield "Swin Transformer V2", torchvision.swin_v2_t().state_dict()
        yield "a ResNet", torchvision.resnet18().state_dict()
        yield "vision transformer", torchvision.vit_b_16().state_dict()
        timm = pytest.importorskip("timm")
        yield "Swin Transformer V2", timm.create_model("swinv2_tiny_window8_256").state_dict()
        yield "Swin Transformer V2", timm.create_model("swinv2_cr_tiny_224").state_dict()
        yield "a ConvNeXt", timm.create_model("convnext_tiny").state_dict()
        transformers = pytest.importorskip("transformers")
        model = transformers.Swinv2Model(transformers.Swinv2Config(depths=[1, 1], num_heads=[3, 6]))
        yield "Swin Transformer V2", model.state_dict()
    official = {k: v for k, v in STATE.items() if "table" not in k}
    yield "a Swin-MLP", official | {"layers.0.blocks.0.spatial_mlp.weight": torch.ones(1)}
    moe = {"layers.2.blocks.1.mlp._moe_layer.experts.batched_fc1_w": torch.ones(1)}
    yield "a Swin mixture of experts", official | moe


def test_other_networks_are_named():
    count = 0
    for name, state in swins_of_another_kind():
        assert find_trunk(state) is None
        message = str(missing_trunk(state, "file.pth"))
        assert message.startswith("file.pth lacks the trunk: it holds") and name in message
        assert "\n" not in message
        count += 1
    assert count == 9
    assert other_network({"something.weight": torch.ones(1)}) is None
    assert other_network(SwinTrunk(PRESETS["swin_nano"]).state_dict()) is None
