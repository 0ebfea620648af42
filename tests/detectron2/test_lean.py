"""memory="lean": neck and heads keep less, compute and log the same."""

import copy

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from e3va import UserError
from e3va.backbone import find_backbone
from e3va.detectron2 import add_e3va_config, lean
from e3va.detectron2.backbone import model_parts
from e3va.detectron2.distributed import hide_trunk_from_ddp
from e3va.detectron2.lean import prepare_model
from e3va.ops.recompute import has_batch_norm
from e3va.utils.measure import track_saved_bytes

SIDES = (64, 96)
KINDS = ("cascade", "mask", "boxes", "keypoint", "predicted", "panoptic", "semantic")
DENSE = ("retinanet", "fcos")


def small_cfg(kind):
    cfg = get_cfg()
    add_e3va_config(cfg)
    model = cfg.MODEL
    model.DEVICE, model.E3VA.PRESET, model.E3VA.HIGHWAY.RANK = "cpu", "swin_nano", 4
    model.BACKBONE.NAME = "build_e3va_swin_fpn_backbone"
    model.FPN.IN_FEATURES, model.FPN.OUT_CHANNELS = ["p0", "p1", "p2", "p3"], 32
    model.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 40
    model.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 2, 32
    model.ROI_HEADS.NAME = "CascadeROIHeads" if kind == "cascade" else "StandardROIHeads"
    model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    model.ROI_BOX_HEAD.FC_DIM = 64
    model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = kind == "cascade"
    model.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = kind == "predicted"
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model.MASK_ON = kind in ("cascade", "mask", "predicted", "panoptic")
    model.ROI_MASK_HEAD.NAME, model.ROI_MASK_HEAD.CONV_DIM = "MaskRCNNConvUpsampleHead", 32
    model.ROI_MASK_HEAD.NUM_CONV = 2
    model.KEYPOINT_ON = kind == "keypoint"
    model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    model.ROI_KEYPOINT_HEAD.CONV_DIMS = [32, 32]
    model.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.SEM_SEG_HEAD.NUM_CLASSES, model.SEM_SEG_HEAD.CONVS_DIM = 3, 32
    names = {"panoptic": "PanopticFPN", "semantic": "SemanticSegmentor", "retinanet": "RetinaNet"}
    model.META_ARCHITECTURE = names.get(kind, "GeneralizedRCNN")
    if kind in DENSE:
        model.META_ARCHITECTURE = "RetinaNet"
        model.BACKBONE.NAME = "build_retinanet_e3va_swin_fpn_backbone"
        model.FPN.IN_FEATURES, model.RETINANET.NUM_CLASSES = ["p1", "p2", "p3"], 2
        model.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    return cfg


def make(kind, memory, cfg=None):
    """A model that begins to train; only neck and heads depend on ``memory``."""
    torch.manual_seed(0)
    model = build_model(cfg or small_cfg(kind))
    return prepare((as_fcos(model) if kind == "fcos" else model).train(), memory)


def as_fcos(retinanet):
    """FCOS on the backbone of a RetinaNet; Detectron2 has no yacs config of it."""
    backbone, names = retinanet.backbone, retinanet.head_in_features
    shapes = [backbone.output_shape()[name] for name in names]
    head = FCOSHead(input_shape=shapes, num_classes=2, conv_dims=[32, 32])
    mean, std = retinanet.pixel_mean.flatten().tolist(), retinanet.pixel_std.flatten().tolist()
    return FCOS(
        backbone=backbone,
        head=head,
        head_in_features=names,
        num_classes=2,
        pixel_mean=mean,
        pixel_std=std,
    )


def prepare(model, memory):
    _, backbone = find_backbone(model)
    backbone.prepare = lambda mixed: None
    backbone.memory = memory
    prepare_model(model, mixed=False)
    backbone.memory = "standard"
    return model


def make_batch():
    generator = torch.Generator().manual_seed(3)
    batch = []
    for count in (2, 1):
        instances = Instances(SIDES)
        boxes = torch.tensor([[5.0, 8.0, 40.0, 50.0], [50.0, 10.0, 90.0, 60.0]])[:count]
        masks = torch.zeros(2, *SIDES, dtype=torch.bool)
        masks[0, 8:50, 5:30], masks[1, 20:60, 50:90] = True, True
        instances.gt_boxes, instances.gt_classes = Boxes(boxes), torch.arange(count)
        instances.gt_masks = BitMasks(masks[:count])
        centre = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 + torch.tensor(
            [[[0.0, 1], [3, 2], [5, 5]]]
        )
        visible = torch.full((count, 3, 1), 2.0)
        instances.gt_keypoints = Keypoints(torch.cat([centre, visible], 2))
        image = torch.rand(3, *SIDES, generator=generator) * 255
        labels = torch.randint(0, 3, SIDES, generator=generator)
        batch.append({"image": image, "instances": instances, "sem_seg": labels})
    return batch


def step(model, autocast=False):
    torch.manual_seed(5)
    with EventStorage(3) as storage:
        with (
            track_saved_bytes(model, model_parts(model)) as saved,
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            losses = model(make_batch())
        sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    logged = {name: history.values() for name, history in storage.histories().items()}
    return losses, gradients, saved.by_part, logged


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *DENSE])
def test_losses_gradients_and_metrics_are_the_same_and_less_is_kept(kind, autocast):
    if kind == "fcos" and autocast:
        pytest.skip("fvcore's giou_loss mixes the precisions of FCOS's boxes")
    if kind in DENSE:  # their scripted loss rounds otherwise once it has been compiled
        for _ in range(2):
            step(make(kind, "standard"), autocast)
    losses, gradients, kept, logged = step(make(kind, "standard"), autocast)
    lean_losses, lean_gradients, lean_kept, lean_logged = step(make(kind, "lean"), autocast)
    exact = {} if autocast else {"rtol": 0, "atol": 0}
    for expected, actual in ((losses, lean_losses), (gradients, lean_gradients)):
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, **exact, msg=name)
    assert lean_logged == logged
    assert lean_kept["neck"] < kept["neck"] and lean_kept["highway"] == kept["highway"]
    assert lean_kept["heads"] < kept["heads"] * (0.25 if kind in DENSE else 0.5)
    assert lean_kept.get("other", 0) <= kept.get("other", 0)


@pytest.mark.parametrize("part", [*lean._PARTS])
def test_each_part_lowers_what_is_kept(part, monkeypatch):
    kinds = {
        "RetinaNetHead": "retinanet",
        "DenseDetector": "retinanet",
        "SemSegFPNHead": "semantic",
        "CascadeROIHeads": "cascade",
    }
    kind = kinds.get(part.__name__, "mask")
    kept = step(make(kind, "standard"))[2]
    monkeypatch.setattr(lean, "_PARTS", {part: lean._PARTS[part]})
    assert sum(step(make(kind, "lean"))[2].values()) < sum(kept.values())


@pytest.mark.parametrize("kind", ["cascade", "panoptic", *DENSE])
def test_evaluation_is_the_same(kind):
    image = [{"image": make_batch()[0]["image"]}]
    with torch.no_grad():
        expected, actual = (make(kind, m).eval()(image)[0] for m in ("standard", "lean"))
    found, wanted = actual["instances"].get_fields(), expected["instances"].get_fields()
    assert torch.equal(found.pop("pred_boxes").tensor, wanted.pop("pred_boxes").tensor)
    assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in found)


@pytest.mark.parametrize("kind", DENSE)
def test_the_average_of_a_dense_loss_counts_each_step_once(kind):
    """100 or 300 at first; each step adds a tenth of its number of positive anchors."""
    averages = []
    for memory in ("standard", "lean"):
        model, values = make(kind, memory), []
        for _ in range(3):
            step(model)
            values.append(model.loss_normalizer)
        averages.append(values)
    assert averages[0] == averages[1] and len(set(averages[0])) == 3


@pytest.mark.parametrize("kind", ["cascade", "mask", "panoptic", *DENSE])
def test_copies_and_second_preparations_are_right(kind):
    model = make(kind, "lean")
    names = list(model.state_dict())
    prepare(model, "lean")
    other = copy.deepcopy(model)
    assert list(other.state_dict()) == names
    expected, actual = step(model), step(other)
    assert expected[2:] == actual[2:]
    assert all(torch.equal(expected[1][n], actual[1][n]) for n in expected[1])
    assert {id(p) for p in other.parameters()}.isdisjoint(id(p) for p in model.parameters())


def test_the_mask_loss_draws_its_pictures_once():
    cfg = small_cfg("mask")
    model = make("mask", "lean", cfg)
    model.roi_heads.mask_head.vis_period = 3
    torch.manual_seed(5)
    with EventStorage(3) as storage:
        losses = model(make_batch())
        drawn = len(storage._vis_data)
        sum(losses.values()).backward()
        assert len(storage._vis_data) == drawn > 0


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "naiveSyncBN"])
def test_batch_norm_is_not_recomputed(norm):
    cfg = small_cfg("cascade")
    cfg.MODEL.FPN.NORM = cfg.MODEL.ROI_BOX_HEAD.NORM = norm
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 1, 32
    model = make("cascade", "lean", cfg)
    assert has_batch_norm(model.roi_heads.box_head)
    assert "forward" not in vars(model.backbone) and "_run_stage" not in vars(model.roi_heads)
    assert "_forward_mask" in vars(model.roi_heads)
    assert "forward" in vars(model.proposal_generator.rpn_head)


def test_boxes_of_the_4conv1fc_config_train_lean(small_config):
    """Its box heads have batch norms among what is else recomputed."""
    for head in small_config.model.roi_heads.box_heads:
        head.conv_dims, head.conv_norm, head.fc_dims = [16], "SyncBN", [32]
    states = []
    for memory in ("standard", "lean"):
        torch.manual_seed(0)
        model = prepare(instantiate(small_config.model).train(), memory)
        step(model)
        states.append(model.state_dict())
    assert any("running_mean" in key for key in states[0])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_model_of_unknown_parts_is_prepared():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = find_backbone(build_model(small_cfg("semantic")))[1]

    model = prepare(Bare(), "lean")
    assert all("forward" not in vars(module) for module in model.modules())
    with pytest.raises(UserError, match="no E³VA backbone"):
        prepare_model(nn.Linear(2, 2), mixed=False)


def test_yacs_and_lazy_configs_have_the_switch_and_refuse_wrong_values(small_config):
    cfg = small_cfg("mask")
    assert (cfg.MODEL.E3VA.MEMORY, cfg.MODEL.E3VA.TRUNK_PRECISION) == ("standard", "auto")
    cfg.MODEL.E3VA.MEMORY, cfg.MODEL.E3VA.TRUNK_PRECISION = "lean", "bf16"
    _, backbone = find_backbone(build_model(cfg))
    assert (backbone.memory, backbone.trunk_precision) == ("lean", "bf16")
    bottom_up = small_config.model.backbone.bottom_up
    assert (bottom_up.memory, bottom_up.trunk_precision) == ("standard", "auto")
    for key, value in (("MEMORY", "tiny"), ("TRUNK_PRECISION", "int4")):
        wrong = small_cfg("mask")
        wrong.MODEL.E3VA[key] = value
        with pytest.raises(UserError, match=f"{key.lower()} '{value}': expected one of"):
            build_model(wrong)
        wrong = small_config.copy()
        wrong.model.backbone.bottom_up[key.lower()] = value
        with pytest.raises(UserError, match=f"{key.lower()} '{value}': expected one of"):
            instantiate(wrong.model)


@pytest.fixture
def process_group(tmp_path):
    """A group of one process, which is this one."""
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ddp_holds_no_parameter_of_a_frozen_trunk(process_group):
    """test_distributed compares the trunks of real processes, which are drawn differently."""
    model = build_model(small_cfg("cascade")).train()
    hide_trunk_from_ddp(model)
    held = set(DistributedDataParallel(model)._module_parameters)
    trunk = set(find_backbone(model)[1].trunk.parameters())
    assert held == set(model.parameters()) - trunk
