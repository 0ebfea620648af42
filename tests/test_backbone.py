"""The backbone trains, keeps and returns what the method promises."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e3va import PRESETS, E3VABackbone, UserError, highway_config
from e3va.utils.measure import count_parameters, track_saved_bytes

NANO = PRESETS["swin_nano"]


def share(preset, recipe="e3va_chain", **options) -> float:
    with torch.device("meta"):
        backbone = E3VABackbone(preset, {"recipe": recipe, **options})
    rows = count_parameters(backbone, {})
    return 100 * rows[0].share


def kept(preset, recipe="e3va_chain", size=64, memory="standard", **options) -> tuple[int, int]:
    """Return the bytes that autograd saves in trunk and highway."""
    backbone = E3VABackbone(preset, {"recipe": recipe, **options}, memory=memory)
    images = torch.rand(1, 3, size, size)
    parts = {"trunk": backbone.trunk, "highway": backbone.highway}
    with track_saved_bytes(backbone, parts) as saved:
        outputs = backbone(images)
    assert outputs
    return saved.by_part["trunk"], saved.by_part["highway"]


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100), batch=st.integers(1, 2))
def test_pyramid_levels_have_their_strides(height, width, batch):
    features = E3VABackbone("swin_nano")(torch.rand(batch, 3, height, width))
    assert list(features) == ["p0", "p1", "p2", "p3"]
    for level, value in enumerate(features.values()):
        stride = 4 * 2**level
        assert value.shape == (batch, 16 * 2**level, -(-height // stride), -(-width // stride))
        assert value.is_contiguous()


SHARES = {
    "e3va_chain": {"swin_t": 1.2, "swin_s": 1.4, "swin_b": 1.4, "swin_l": 1.4, "swin_b_384": 1.4},
    "e3va_wide": {"swin_t": 4.1, "swin_s": 4.7, "swin_b": 4.6, "swin_l": 4.6, "swin_mini": 4.3},
    "e3va": {"swin_t": 1.3, "swin_s": 1.5, "swin_b": 1.1, "swin_l": 0.8, "swin_b_384": 1.1},
}


@pytest.mark.parametrize("recipe", SHARES)
def test_trained_share(recipe):
    assert {name: round(share(name, recipe), 1) for name in SHARES[recipe]} == SHARES[recipe]


def test_shared_adapters_are_stored_once():
    state = E3VABackbone("swin_nano", {"shared": True, "taps": "residual"}).state_dict()
    found = {name.rsplit(".", 2)[0] for name in state if ".mlp." in name or ".msa." in name}
    own = {name for name in found if name.startswith("highway.")}
    assert own == {f"highway.stages.{s}.{kind}.0" for s in range(4) for kind in ("msa", "mlp")}


def test_trained_share_of_the_papers_largest_model():
    """The paper states "less than 1.5%"."""
    assert round(share("swin_l", "e3va", rank=32), 2) == 1.48


def test_each_recipe_has_settings_of_its_own():
    def complete(preset, *recipe, **changes):
        config = highway_config(*recipe, **changes).complete(PRESETS[preset].embed_dim)
        return config.options["rank"], config.taps, config.downsample

    assert complete("swin_l") == (72, "block", "offset")
    assert complete("swin_l", "e3va") == (16, "sublayer", "direct")
    changes = {"rank": 8, "taps": "residual", "downsample": "offset"}
    assert complete("swin_t", "e3va", **changes) == (8, "residual", "offset")
    for recipe in ("frozen", "full"):
        assert E3VABackbone(NANO, {"recipe": recipe, "taps": "residual"}).highway.taps is None


def test_the_default_keeps_fewer_bytes_than_the_papers_highway():
    for preset in ("swin_nano", "swin_mini"):
        plain = kept(preset, "e3va", rank=PRESETS[preset].embed_dim // 6)
        assert kept(preset)[1] < plain[1]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_heads_that_divide_their_channels(name):
    preset = PRESETS[name]
    widths = {dim // heads for dim, heads in zip(preset.dims, preset.num_heads, strict=True)}
    assert widths == {{"swin_nano": 16, "swin_mini": 24}.get(name, 32)}
    own = {"384": (12, 384), "nano": (4, 64)}
    expected = own.get(name.split("_")[-1], (7, 224))
    assert (preset.window, preset.pretrain_size) == expected


def test_recipes_train_the_right_parameters():
    def trained(recipe):
        backbone = E3VABackbone("swin_nano", recipe)
        return {name for name, p in backbone.named_parameters() if p.requires_grad}

    norms = {f"highway.stages.{s}.out_norm.{p}" for s in range(4) for p in ("weight", "bias")}
    assert trained("frozen") == norms
    everything = dict(E3VABackbone("swin_nano", "full").named_parameters())
    assert trained("full") == set(everything) and norms < set(everything)
    for recipe in ("e3va_chain", "e3va"):
        names = trained(recipe)
        assert norms < names and not any(name.startswith("trunk.") for name in names)


def test_state_names_are_the_official_ones_below_trunk():
    state = E3VABackbone("swin_nano").state_dict()
    assert "highway.stages.3.mlp.1.conv.weight" in state
    paper = E3VABackbone("swin_nano", "e3va").state_dict()
    assert "trunk.layers.2.blocks.1.attn.relative_position_bias_table" in state
    assert "trunk.layers.0.downsample.reduction.weight" in state
    assert "trunk.patch_embed.norm.bias" in state
    assert "highway.stages.3.msa.1.u2.weight" in paper
    assert not any("index" in name or "mask" in name for name in state)
    assert {name.split(".")[0] for name in state} == {"trunk", "highway"}


def test_training_does_not_change_the_trunks_bytes():
    backbone = E3VABackbone("swin_nano", {"rank": 2}).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        outputs = backbone(torch.rand(1, 3, 48, 48))
        sum((out - 1).abs().mean() for out in outputs.values()).backward()
        optimizer.step()
        backbone.trunk.check_frozen(optimizer)
    changed = {n for n, v in backbone.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {name for name in before if name.startswith("highway.")}


def test_kept_bytes_do_not_depend_on_attention_or_mlp():
    reference = kept(NANO)
    assert reference[0] == 0 < reference[1]
    assert kept(replace(NANO, mlp_ratio=8.0)) == reference
    assert kept(replace(NANO, num_heads=(2, 4, 8, 16))) == reference
    assert kept(replace(NANO, window=8)) == reference
    full = kept(NANO, "full")[0]
    assert kept(replace(NANO, mlp_ratio=8.0), "full")[0] > full > 3 * reference[1]


def test_kept_bytes_grow_with_the_taps():
    """Each further block of a stage adds the same: its taps and its adapters' rank-r tensors."""
    tokens, dim, rank, hidden = 8 * 8, 32, 16, 8
    # D1 keeps z, D2 its input, GELU its input, U1 its input, U2 its input; of two adapters.
    paper = 2 * tokens * (dim + rank + hidden + hidden + rank)
    # The norm keeps std and its inverse, and shares its result with D; convolution, GELU, the
    # product with std, and U keep their inputs. D, K and U themselves are not parameters.
    matrices = dim * rank + 5 * 5 * rank + rank * dim
    chain = tokens * (2 + dim + rank + rank + rank + rank) + matrices
    for recipe, elements in (("e3va", paper), ("e3va_chain", chain)):
        settings_ = {"recipe": recipe, "rank": rank, "memory": "plain"}
        sizes = [kept(replace(NANO, depths=(2, n, 2, 2)), **settings_)[1] for n in (2, 4, 6)]
        assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 2 * elements * 4


def test_kept_bytes_of_each_memory_mode():
    """Compare with a count by hand of what a further block and a joint keep."""
    tokens, dim, rank = 8 * 8, 32, 16
    block = {
        "standard": tokens * (2 * dim + 4 * rank + 4),  # bfloat16 tap, bottleneck, 1/std
        "lean": tokens * (dim + 2 + 4),  # 8-bit tap, one bfloat16 scale for 32 channels, 1/std
    }
    for memory, expected in block.items():
        settings_ = {"rank": rank, "memory": memory}
        sizes = [kept(replace(NANO, depths=(2, n, 2, 2)), **settings_)[1] for n in (2, 4, 6)]
        assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 2 * expected
    levels = [(256 // 4**s, 16 * 2**s) for s in range(4)]
    joints = {
        "standard": sum(t * (2 * c + 8) for t, c in levels),  # bfloat16, mean and 1/std
        "lean": sum(t * (c + 2 * max(1, c // 64) + 8) for t, c in levels),
    }
    for memory, expected in joints.items():
        assert kept(NANO, "frozen", memory=memory) == (0, expected)


@pytest.mark.parametrize("memory", ["standard", "lean"])
@pytest.mark.parametrize("mixed", [False, True])
def test_training_does_not_change_a_prepared_trunk(memory, mixed):
    backbone = E3VABackbone("swin_nano", {"rank": 2}, memory=memory).train()
    names = set(backbone.state_dict())
    backbone.prepare(mixed)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert set(before) == names
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            outputs = backbone(torch.rand(1, 3, 48, 48))
        sum((out - 1).abs().mean() for out in outputs.values()).backward()
        optimizer.step()
        backbone.trunk.check_frozen(optimizer)
    after = backbone.state_dict()
    changed = {n for n, v in after.items() if not torch.equal(v, before[n])}
    assert changed == {name for name in before if name.startswith("highway.")}
    again = E3VABackbone("swin_nano", {"rank": 2}, memory=memory)
    again.load_state_dict(after)
    again.prepare(mixed)
    for name, value in again.state_dict().items():
        assert torch.equal(value, after[name])
    images = torch.rand(1, 3, 40, 40)
    plain = E3VABackbone("swin_nano", {"rank": 2}, memory="plain")
    plain.load_state_dict(after)
    for ours, theirs in zip(again(images).values(), plain(images).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_preparing_changes_neither_a_plain_trunk_nor_one_that_trains():
    for settings_ in ({"highway": "full"}, {"memory": "plain"}):
        backbone = E3VABackbone("swin_nano", **settings_)
        backbone.prepare(mixed=True)
        assert {p.dtype for p in backbone.parameters()} == {torch.float32}


@pytest.mark.parametrize("recipe", ["e3va_chain", "e3va"])
@pytest.mark.parametrize("downsample", ["offset", "direct"])
def test_half_precision_is_close_to_float32(downsample, recipe):
    torch.manual_seed(0)
    backbone = E3VABackbone("swin_nano", {"recipe": recipe, "downsample": downsample})
    for name, parameter in backbone.highway.named_parameters():
        if name.endswith(("u2.weight", "up.weight", "conv.weight")):
            torch.nn.init.normal_(parameter, std=0.05)
    images = torch.rand(1, 3, 64, 64)
    plain = backbone(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = backbone(images)
    for name, value in plain.items():
        error = (half[name].float() - value).norm() / value.norm()
        assert 0 < error < 0.02


def test_offset_of_zero_adapters_is_zero_in_half_precision_too():
    """Rounding in the patch mergings must not look like a learned offset."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backbone = E3VABackbone("swin_nano")
        h = None
        for stage in backbone.trunk.stages(torch.rand(1, 3, 64, 64)):
            _, h = backbone.highway.advance(stage, h, backbone.trunk.patch_mergings[stage.index])
            assert h is None or torch.count_nonzero(h) == 0


def test_fewer_levels_run_fewer_stages():
    backbone = E3VABackbone("swin_nano", out_features=["p1", "p0"])
    assert list(backbone(torch.rand(1, 3, 32, 32))) == ["p0", "p1"]
    assert len(backbone.highway.stages) == 2


def test_wrong_settings_are_refused():
    for settings_, message in (
        ({"highway": "lora"}, "recipe 'lora'"),
        ({"highway": {"taps": "all"}}, "taps 'all'"),
        ({"highway": {"downsample": "no"}}, "downsample 'no'"),
        ({"highway": {"rank": 0}}, "rank=0"),
        ({"highway": 3}, "highway 3"),
        ({"out_features": ["p4"]}, "out_features"),
        ({"out_features": []}, "out_features"),
    ):
        with pytest.raises(UserError, match=message):
            E3VABackbone("swin_nano", **settings_)
