"""LazyPredictor answers as Detectron2's DefaultPredictor does, with the same checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.engine import DefaultPredictor

from e3va import UserError
from e3va.detectron2 import LazyPredictor, add_e3va_config, load_config
from e3va.detectron2.config import CONFIG_ROOT
from e3va.utils.atomic import save_atomically

NANO = "model.backbone.bottom_up.preset=swin_nano"
LAZY = [
    NANO,
    "model.roi_heads.num_classes=4",
    "dataloader.test.mapper.augmentations.0.short_edge_length=96",
    "dataloader.test.mapper.augmentations.0.max_size=150",
    "model.proposal_generator.post_nms_topk=[60,60]",
    "model.roi_heads.mask_head.conv_dims=[16,16,16,16,16]",
    "train.device=cpu",
]
LAZY += [
    f"model.roi_heads.{key}"
    for k in range(3)
    for key in (
        f"box_heads.{k}.fc_dims=[32,32]",
        f"box_predictors.{k}.input_shape.channels=32",
        f"box_predictors.{k}.test_score_thresh=0.02",
    )
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint of a random detector; its adapters are not zero."""
    torch.manual_seed(3)
    model = instantiate(load_config("COCO/cascade_mask_rcnn_e3va_swin_t_1x.py", LAZY).model)
    for name, parameter in model.named_parameters():
        if ".up." in name or "bbox_pred" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    save_atomically({"model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def lazy(weights) -> LazyPredictor:
    return LazyPredictor("COCO/cascade_mask_rcnn_e3va_swin_t_1x.py", weights, LAZY)


@pytest.fixture
def image() -> np.ndarray:
    """Sides that no stride divides; three different channels."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 90, (117, 155, 3), dtype=np.uint8)
    picture[20:70, 30:90] = (200, 120, 20)
    return picture


def default_predictor(weights: Path) -> DefaultPredictor:
    cfg = get_cfg()
    add_e3va_config(cfg)
    cfg.merge_from_file(str(CONFIG_ROOT / "COCO/cascade_mask_rcnn_e3va_swin_t.yaml"))
    cfg.MODEL.E3VA.PRESET = "swin_nano"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.02
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 60
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 150
    return DefaultPredictor(cfg)


def test_same_boxes_scores_classes_and_masks_as_default_predictor(lazy, weights, image):
    ours = lazy(image)["instances"]
    theirs = default_predictor(weights)(image)["instances"]
    assert len(ours) > 5
    assert ours.image_size == theirs.image_size == image.shape[:2]
    torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    torch.testing.assert_close(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    assert torch.equal(ours.pred_masks, theirs.pred_masks)
    assert not ours.scores.requires_grad


def test_input_is_bgr(lazy, weights, image):
    """The other channel order gives another answer, and the one of a config that reads BGR."""
    ours = lazy(image)["instances"].scores
    swapped = lazy(np.ascontiguousarray(image[:, :, ::-1]))["instances"].scores
    assert len(ours) != len(swapped) or not torch.allclose(ours, swapped)
    bgr = LazyPredictor(
        "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py",
        weights,
        [*LAZY, "dataloader.train.mapper.image_format=BGR"],
    )
    torch.testing.assert_close(bgr(image)["instances"].scores, swapped)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((20, 30, 3), dtype=np.float32),
        np.zeros((20, 30), dtype=np.uint8),
        np.zeros((20, 30, 4), dtype=np.uint8),
        np.zeros((0, 30, 3), dtype=np.uint8),
        [[1, 2, 3]],
    ],
)
def test_wrong_arrays_are_one_clear_line(lazy, wrong):
    with pytest.raises(UserError, match=r"expected a uint8 array \[H, W, 3\] in BGR order"):
        lazy(wrong)


def test_names_the_classes_of_the_saved_config(small_config, tmp_path, image):
    from detectron2.config import LazyConfig

    path = tmp_path / "config.yaml"
    LazyConfig.save(small_config, str(path))
    model = instantiate(small_config.model)
    save_atomically({"model": model.state_dict()}, tmp_path / "w.pth")
    Path(small_config.data.train.json).unlink()  # the saved config is complete without it
    predictor = LazyPredictor(path, tmp_path / "w.pth")
    assert predictor.metadata.thing_classes == ["red", "blue"]  # by id: 3, 7
    assert predictor(image)["instances"].image_size == image.shape[:2]


def test_weights_and_device_are_the_configs_unless_given(weights, lazy, image):
    own = [*LAZY, "train.device=cuda", f"train.init_checkpoint={weights}"]
    predictor = LazyPredictor(
        "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py", overrides=own, device="cpu"
    )
    assert torch.equal(predictor(image)["instances"].scores, lazy(image)["instances"].scores)
    classes = lazy.metadata.thing_classes  # of the data set that the config names
    assert (len(classes), classes[0], classes[-1]) == (80, "person", "toothbrush")


def test_what_cannot_be_built_is_one_clear_line(weights):
    config = "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py"
    with pytest.raises(UserError, match="no weights: give a checkpoint"):
        LazyPredictor(config, None, LAZY)
    with pytest.raises(UserError, match="no weights file nowhere.pth"):
        LazyPredictor(config, "nowhere.pth", LAZY)
    with pytest.raises(UserError, match="swin_nano .* but the model's trunk is swin_t"):
        LazyPredictor(config, weights, ["train.device=cpu"])
    with pytest.raises(UserError, match="device 'gpu': expected cpu, cuda or cuda:N"):
        LazyPredictor(config, weights, LAZY, device="gpu")
