"""The backbones in Detectron2: registry and contract."""

import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from e3va import E3VABackbone, SwinTrunk, UserError
from e3va.adapter_files.files import save_adapter
from e3va.backbone import find_backbone
from e3va.detectron2 import E3VASwin, add_e3va_config
from e3va.detectron2 import backbone as backbones
from e3va.detectron2.checkpoint import HighwayCheckpointer
from e3va.utils.atomic import save_atomically


def yacs(name="build_e3va_swin_backbone", preset="swin_nano"):
    cfg = get_cfg()
    add_e3va_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.E3VA.PRESET = preset
    cfg.MODEL.FPN.IN_FEATURES = ["p0", "p1", "p2", "p3"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


def check_shapes(backbone, side=64):
    features = backbone(torch.rand(2, 3, side, 2 * side))
    declared = backbone.output_shape()
    assert features.keys() == declared.keys()
    for name, value in features.items():
        stride = declared[name].stride
        channels = declared[name].channels
        assert value.shape == (2, channels, side // stride, 2 * side // stride), name


def test_bare_backbone_declares_its_outputs():
    backbone = build_backbone(yacs())
    assert isinstance(backbone, E3VASwin)
    check_shapes(backbone)
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    assert strides == {"p0": 4, "p1": 8, "p2": 16, "p3": 32}
    assert backbone.size_divisibility == 32
    assert backbone.padding_constraints == {"size_divisibility": 32}


def test_fewer_levels_need_less_padding():
    cfg = yacs()
    cfg.MODEL.E3VA.OUT_FEATURES = ["p0", "p2"]
    backbone = build_backbone(cfg)
    check_shapes(backbone)
    assert backbone.size_divisibility == 16


def test_images_are_padded_to_the_divisibility():
    backbone = build_backbone(yacs())
    images = ImageList.from_tensors(
        [torch.rand(3, 33, 70), torch.rand(3, 40, 65)],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    )
    assert images.tensor.shape == (2, 3, 64, 96)


def test_fpn_gives_p2_to_p6():
    backbone = build_backbone(yacs("build_e3va_swin_fpn_backbone"))
    check_shapes(backbone)
    strides = [shape.stride for shape in backbone.output_shape().values()]
    assert strides == [4, 8, 16, 32, 64] and backbone.size_divisibility == 32


def test_yacs_keys_reach_the_backbone(tmp_path):
    cfg = yacs("build_e3va_swin_fpn_backbone")
    cfg.MODEL.E3VA.HIGHWAY.RANK = 3  # by attribute, from a list and from YAML
    cfg.merge_from_list(["MODEL.E3VA.HIGHWAY.KERNEL", 3])
    (tmp_path / "mine.yaml").write_text(
        "MODEL: {E3VA: {HIGHWAY: {TAPS: sublayer, DOWNSAMPLE: direct}}}\n"
    )
    cfg.merge_from_file(str(tmp_path / "mine.yaml"))
    built = build_backbone(cfg).bottom_up
    for parameter in built.highway.parameters():
        nn.init.normal_(parameter, std=0.1)  # new adapters would hide what they read
    settings = {"rank": 3, "kernel": 3, "taps": "sublayer", "downsample": "direct"}
    same = E3VASwin("swin_nano", settings)
    same.load_state_dict(built.state_dict())
    images = torch.rand(1, 3, 64, 64)
    for name, feature in built(images).items():
        assert torch.equal(feature, same(images)[name])
    cfg.MODEL.E3VA.HIGHWAY = CfgNode({"ADAPTER": "lora", "PLACEMENT": "inside"})
    assert build_backbone(cfg).bottom_up.config.highway.inside
    cfg.MODEL.E3VA.HIGHWAY.RNAK = 3
    with pytest.raises(UserError, match="'rnak'.*'rank'"):
        build_backbone(cfg)
    cfg.MODEL.E3VA.HIGHWAY = CfgNode({"RECIPE": "full"})
    assert all(p.requires_grad for p in build_backbone(cfg).parameters())


@pytest.fixture
def warned(monkeypatch):
    """The warnings of the module, however other tests have configured the loggers."""
    texts = []
    monkeypatch.setattr(backbones.logger, "warning", lambda text, *v: texts.append(text % v))
    return texts


def test_a_random_frozen_trunk_is_reported_once(warned, tmp_path):
    """Under Detectron2's own checkpointer, which skips names that the model does not have."""
    save_atomically({"model": SwinTrunk("swin_nano").state_dict()}, tmp_path / "swin.pth")
    model = build_backbone(yacs("build_e3va_swin_fpn_backbone"))
    DetectionCheckpointer(model).load(str(tmp_path / "swin.pth"))
    images = torch.rand(1, 3, 64, 64)
    first, second = model.bottom_up(images), model.bottom_up(images)
    assert len(warned) == 1
    for text in ("swin_nano", "random", "train.init_checkpoint", "?matching_heuristics=True"):
        assert text in warned[0]
    for name, value in E3VABackbone.forward(model.bottom_up, images).items():
        assert torch.equal(value, first[name]) and torch.equal(value, second[name])


def test_loaded_shared_and_trained_trunks_are_not_reported(warned, tmp_path):
    trunk = SwinTrunk("swin_nano")
    save_atomically({"model": trunk.state_dict()}, tmp_path / "swin.pth")
    by_heuristics, whole, highway, adapted = (
        build_backbone(yacs("build_e3va_swin_fpn_backbone")) for _ in range(4)
    )
    HighwayCheckpointer(highway).load(str(tmp_path / "swin.pth"))
    save_adapter(highway, tmp_path / "adapter", framework="detectron2")
    HighwayCheckpointer(adapted, trunk=tmp_path / "swin.pth").load(str(tmp_path / "adapter"))
    path = f"{tmp_path / 'swin.pth'}?matching_heuristics=True"
    DetectionCheckpointer(by_heuristics).load(path)
    save_atomically({"model": by_heuristics.state_dict()}, tmp_path / "whole.pth")
    DetectionCheckpointer(whole).load(str(tmp_path / "whole.pth"))
    bottom_ups = [model.bottom_up for model in (by_heuristics, whole, highway, adapted)]
    shared, trained = (
        E3VASwin("swin_nano", trunk=bottom_ups[0].trunk),
        E3VASwin("swin_nano", "full"),
    )
    for bottom_up in (*bottom_ups, shared, trained, copy.deepcopy(bottom_ups[0])):
        bottom_up(torch.rand(1, 3, 64, 64))
    assert not warned


def test_retinanet_changes_every_trained_parameter():
    cfg = yacs("build_retinanet_e3va_swin_fpn_backbone")
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.FPN.IN_FEATURES = ["p1", "p2", "p3"]
    cfg.MODEL.FPN.OUT_CHANNELS = 256
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    model = build_model(cfg).train()
    assert [s.stride for s in model.backbone.output_shape().values()] == [8, 16, 32, 64, 128]
    assert model.backbone.top_block.p6.in_channels == 128  # of the backbone's p3, not of the FPN's
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor([[5.0, 5.0, 50.0, 60.0]]))
    instances.gt_classes = torch.tensor([2])
    with EventStorage():
        losses = model([{"image": torch.rand(3, 64, 96), "instances": instances}])
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert not any(p.requires_grad for p in find_backbone(model)[1].trunk.parameters())


def test_registry_refuses_what_a_swin_cannot_take():
    build = BACKBONE_REGISTRY.get("build_e3va_swin_backbone")
    with pytest.raises(UserError, match="4 image channels"):
        build(yacs(), ShapeSpec(channels=4))
    with pytest.raises(UserError, match="no E³VA backbone"):
        find_backbone(nn.Linear(1, 1))


def test_new_e3va_detector_predicts_as_detectron2s_swin_detector(small_config, detectron2s_own):
    """Adapters start at zero: with equal weights, the two detectors are one function."""
    model = instantiate(small_config.model).eval()
    other = instantiate(detectron2s_own.model).eval()
    state = {k.replace("bottom_up.trunk.", "bottom_up."): v for k, v in model.state_dict().items()}
    missing = other.load_state_dict(state, strict=False).missing_keys
    names = ("relative_position_index", ".norm0.", ".norm1.", ".norm2.", ".norm3.")
    assert all(any(name in key for name in names) for key in missing)  # norms start at 1 and 0
    image = {"image": torch.rand(3, 70, 90) * 255, "height": 70, "width": 90}
    with torch.no_grad():
        ours, reference = (m([image])[0]["instances"] for m in (model, other))
    assert len(ours) > 0
    torch.testing.assert_close(ours.scores, reference.scores)
    torch.testing.assert_close(ours.pred_boxes.tensor, reference.pred_boxes.tensor)
