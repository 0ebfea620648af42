"""Semantic FPN: ADE20K as it is published, training, scores, twins, pictures."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor, default_argument_parser
from detectron2.modeling import build_model
from PIL import Image

from e3va import UserError
from e3va.detectron2 import LazyPredictor, add_e3va_config, engine, load_config
from e3va.detectron2.config import CONFIG_ROOT
from e3va.detectron2.data import registered_dicts
from e3va.detectron2.describe import describe_config, find_metadata
from e3va.detectron2.labels import LabelMapper, label_evaluator, registered_label_evaluator
from e3va.detectron2.lean import prepare_model
from e3va.detectron2.visualize import draw_labels, predict_folder
from e3va.utils.atomic import save_atomically

from .conftest import HEAD

CONFIG = "custom/semantic_fpn_e3va_swin_t.py"
ADE = "ADE20K/semantic_fpn_e3va_swin_t_80k.py"
NAMES = ("ground", "red", "blue")


def arguments(*overrides: str, flags=()) -> Namespace:
    return default_argument_parser().parse_args(["--config-file", CONFIG, *flags, *overrides])


def test_a_few_steps_lower_the_loss_and_the_saved_files_predict(
    label_overrides, pretrained, drawn, tmp_path, capsys
):
    """From the command line's function to pictures, by the checkpoint and by the adapter."""
    label_overrides = [*label_overrides, f"train.init_checkpoint={pretrained}"]
    engine.run(arguments(*label_overrides, "train.max_iter=40", "train.eval_period=40"))
    output = tmp_path / "output"
    records = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [record["total_loss"] for record in records if "total_loss" in record]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    assert 50 < records[-1]["sem_seg/mIoU"] <= 100
    description = json.loads((output / "adapter_config.json").read_text())
    assert description["classes"] == list(NAMES)
    assert description["trained_on"] == "6 images with label maps (labels)"

    config = output / "config.yaml"
    predictors = [
        LazyPredictor(config, weights) for weights in (output / "model_final.pth", output)
    ]
    picture = np.array(Image.open(drawn.images / "2.png"))[:, :, ::-1]
    scores = [predictor(picture)["sem_seg"] for predictor in predictors]
    assert scores[0].shape == (3, 96, 80)
    torch.testing.assert_close(scores[0], scores[1])
    assert predictors[1].metadata.stuff_classes == list(NAMES)

    capsys.readouterr()
    failed = predict_folder(predictors[0], [drawn.images / "2.png"], tmp_path / "drawn", 0.5)
    assert failed == 0
    assert np.array(Image.open(tmp_path / "drawn" / "2.png")).shape == (576, 480, 3)
    printed = capsys.readouterr().out
    assert all(f"{name} {share:.0%}" in printed for name, share in shares_of(scores[0]).items())


def shares_of(scores: torch.Tensor) -> dict[str, float]:
    labels = scores.argmax(0)
    return {name: (labels == k).float().mean() for k, name in enumerate(NAMES)}


def test_a_resumed_run_ends_with_the_same_bits(label_overrides, tmp_path):
    """It continues from the checkpoint in the middle."""
    ends = [*label_overrides, "train.max_iter=4", "train.checkpointer.period=2"]
    cfg = engine.prepare(load_config(CONFIG, ends))
    whole = engine.train(cfg).model.state_dict()
    (tmp_path / "output" / "last_checkpoint").write_text("model_0000001.pth")
    resumed = engine.train(cfg, resume=True)
    assert resumed.start_iter == 2
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(whole[name], value), name


@pytest.mark.parametrize(("precision", "memory"), [("bf16", "lean"), ("fp16", "standard")])
def test_mixed_precision_and_lean_memory_learn_too(label_overrides, precision, memory):
    cfg = load_config(
        CONFIG,
        [
            *(*label_overrides, f"train.amp.dtype={precision}", "train.amp.enabled=true"),
            *(f"model.backbone.bottom_up.memory={memory}", "train.max_iter=12"),
        ],
    )
    trainer = engine.train(engine.prepare(cfg))
    losses = [v for v, _ in trainer.storage.history("total_loss").values()]
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])


def test_lean_memory_keeps_less_and_has_nearly_the_same_gradient(label_overrides):
    kept, gradients = {}, {}
    batch = None
    for memory in ("standard", "lean"):
        cfg = load_config(CONFIG, [*label_overrides, f"model.backbone.bottom_up.memory={memory}"])
        torch.manual_seed(2)
        model = instantiate(cfg.model)
        batch = batch or next(iter(instantiate(cfg.dataloader.train)))
        prepare_model(model, mixed=False)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t
        ):
            loss = model(batch)["loss_sem_seg"]
        loss.backward()
        kept[memory] = sum(sizes)
        gradients[memory] = torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        )
    assert kept["lean"] < kept["standard"] / 2
    difference = (gradients["lean"] - gradients["standard"]).norm()
    assert difference < 0.05 * gradients["standard"].norm()


@pytest.mark.parametrize("memory", ["standard", "lean"])
def test_a_batch_without_a_labelled_pixel_has_the_loss_0(label_overrides, memory):
    """Its gradients are 0; a batch with one labelled pixel has Detectron2's loss to the bit."""
    cfg = load_config(CONFIG, [*label_overrides, f"model.backbone.bottom_up.memory={memory}"])
    model = instantiate(cfg.model).train()
    prepare_model(model, mixed=False)
    batch = next(iter(instantiate(cfg.dataloader.train)))
    for example in batch:
        example["sem_seg"].fill_(255)
    loss = model(batch)["loss_sem_seg"]
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss == 0 and gradients and not any(g.any() or g.isnan().any() for g in gradients)
    head, logits = model.sem_seg_head, torch.randn(2, 3, 4, 4)
    labels = torch.full((2, 16, 16), 255)
    labels[0, 3, 5] = 1
    theirs = type(head).losses(head, logits, labels)
    assert head.losses(logits, labels) == theirs and theirs["loss_sem_seg"] > 0


@pytest.fixture
def ade(tmp_path, monkeypatch) -> Path:
    """``ADEChallengeData2016/`` with two pictures in either part."""
    root = tmp_path / "ADEChallengeData2016"
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for k in range(2):
            picture = rng.integers(0, 255, (60, 70, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / "images" / split / f"ADE_{k}.jpg")
            labels = rng.integers(0, 6, (60, 70), dtype=np.uint8)
            labels[0, :4] = (0, 1, 2, 150)
            Image.fromarray(labels).save(root / "annotations" / split / f"ADE_{k}.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return root


def test_ade20k_is_read_in_its_published_layout(ade):
    """0 is ignored, and 1 to 150 are the classes 0 to 149, of Detectron2's names."""
    names = MetadataCatalog.get("ade_challenge_2016_val").stuff_classes
    assert len(names) == 150 and names == MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes
    records = registered_dicts("ade_challenge_2016_train", filter_empty=False)
    assert [Path(r["file_name"]).name for r in records] == ["ADE_0.jpg", "ADE_1.jpg"]
    example = LabelMapper(True, [], "RGB", classes=150)(records[0])
    assert example["sem_seg"][0, :4].tolist() == [255, 0, 1, 149]
    raw = np.array(Image.open(ade / "annotations" / "training" / "ADE_0.png")).astype(int)
    assert np.array_equal(example["sem_seg"].numpy(), np.where(raw == 0, 255, raw - 1))


def test_labels_that_detectron2s_script_has_shifted_are_not_shifted_again(ade):
    (ade / "annotations").rename(ade / "annotations_detectron2")
    record = registered_dicts("ade_challenge_2016_val", filter_empty=False)[0]
    example = LabelMapper(True, [], "RGB")(record)
    assert example["sem_seg"][0, :4].tolist() == [0, 1, 2, 150]


@pytest.mark.parametrize("missing", ["images", "annotations"])
def test_missing_ade20k_is_one_line(ade, missing):
    (ade / missing).rename(ade / "elsewhere")
    with pytest.raises(
        UserError, match=f"no folder .*{missing}.training; set .*DETECTRON2_DATASET"
    ):
        registered_dicts("ade_challenge_2016_train", filter_empty=False)


def test_ade20ks_config_trains_and_evaluates(ade, tmp_path):
    cfg = load_config(ADE, [*HEAD, "dataloader.train.total_batch_size=2", "train.max_iter=1"])
    cfg.train.output_dir = str(tmp_path / "output")
    batch = next(iter(instantiate(cfg.dataloader.train)))
    for example in batch:  # a crop of a picture of 60 × 70 brought to at least 256
        assert example["image"].shape[1:] == example["sem_seg"].shape
        assert min(example["sem_seg"].shape) >= 256 and max(example["sem_seg"].shape) <= 512
        assert set(example["sem_seg"].unique().tolist()) <= {*range(6), 149, 255}
    cfg.dataloader.train.mapper.augmentations[0].short_edge_length = [64, 64]
    cfg.dataloader.test.mapper.augmentations[0].short_edge_length = 64
    engine.prepare(cfg)
    model = engine.train(cfg).model
    results = engine.evaluate(cfg, model)["sem_seg"]
    assert 0 <= results["mIoU"] <= 100 and 0 <= results["pACC"] <= 100
    description = describe_config(cfg)
    assert description["classes"][:2] == ("wall", "building") and len(description["classes"]) == 150
    assert description["trained_on"] == "ade_challenge_2016_train"


@pytest.mark.parametrize("iterations", [80000, 160000])
def test_ade20ks_schedule_is_warm_up_and_a_straight_line(iterations):
    cfg = load_config(ADE.replace("80k", f"{iterations // 1000}k"))
    assert cfg.train.max_iter == iterations and cfg.dataloader.train.total_batch_size == 16
    schedule = instantiate(cfg.lr_multiplier)
    for step in (1500, iterations // 2, iterations - 1):
        assert schedule(step / iterations) == pytest.approx(1 - step / iterations)
    assert schedule(0.0) == pytest.approx(1e-6)
    assert schedule(750 / iterations) == pytest.approx((1 - 1500 / iterations) / 2, rel=1e-4)


def brute_force(pairs, classes: int) -> tuple[float, float]:
    """mIoU and pixel accuracy in percent of (truth, prediction) by counting; 255 is ignored."""
    truth = np.concatenate([t.ravel() for t, _ in pairs])
    found = np.concatenate([f.ravel() for _, f in pairs])[truth != 255]
    truth = truth[truth != 255]
    ious = [
        np.sum((truth == k) & (found == k)) / np.sum((truth == k) | (found == k))
        for k in range(classes)
        if (truth == k).any()
    ]
    return 100 * np.mean(ious), 100 * np.mean(truth == found)


@pytest.mark.parametrize("published", [False, True])
def test_scores_equal_those_of_counting(maps, drawn, ade, tmp_path, published):
    """Of label maps of a user's own, and of ADE20K's, whose labels are one too large."""
    if published:
        evaluator = registered_label_evaluator("ade_challenge_2016_val", tmp_path / "scores")
        records, classes = DatasetCatalog.get("ade_challenge_2016_val"), 150
    else:
        names = [*NAMES, "of no map"]
        evaluator = label_evaluator(
            str(drawn.images), str(maps), classes=names, output_dir=str(tmp_path / "scores")
        )
        records = [
            {"file_name": str(drawn.images / f"{k}.png"), "sem_seg_file_name": maps / f"{k}.png"}
            for k in range(1, 7)
        ]
        classes = 4
    evaluator.reset()
    pairs, generator = [], torch.Generator().manual_seed(1)
    for record in records:
        truth = np.array(Image.open(record["sem_seg_file_name"])).astype(int)
        if published:
            truth = np.where(truth == 0, 255, truth - 1)
        scores = torch.rand(classes, *truth.shape, generator=generator)
        right = torch.from_numpy(np.where(truth == 255, 0, truth))[None]
        scores.scatter_add_(0, right, torch.full(right.shape, 0.5))  # not all by chance
        pairs.append((truth, scores.argmax(0).numpy()))
        evaluator.process([record], [{"sem_seg": scores}])
    results = evaluator.evaluate()["sem_seg"]
    assert (results["mIoU"], results["pACC"]) == pytest.approx(brute_force(pairs, classes))


@pytest.mark.parametrize("size", "tsbl")
def test_yacs_twin_has_the_same_parameters(size):
    cfg = yacs(size)
    cfg.MODEL.DEVICE = "meta"
    lazy = load_config(ADE.replace("swin_t", f"swin_{size}"))
    with torch.device("meta"):
        twins = [build_model(cfg), instantiate(lazy.model)]
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in twins]
    assert shapes[0] == shapes[1] and shapes[0]["sem_seg_head.predictor.weight"][0] == 150
    trained = [{k for k, v in model.named_parameters() if v.requires_grad} for model in twins]
    assert trained[0] == trained[1]


def yacs(size: str):
    cfg = get_cfg()
    add_e3va_config(cfg)
    cfg.merge_from_file(str(CONFIG_ROOT / f"ADE20K/semantic_fpn_e3va_swin_{size}.yaml"))
    return cfg


def test_yacs_twin_gives_the_same_labels(tmp_path):
    """``DefaultPredictor`` with the YAML file, ``LazyPredictor`` with the LazyConfig."""
    small = [HEAD[0], "dataloader.test.mapper.augmentations.0.short_edge_length=96"]
    model = instantiate(load_config(ADE, small).model)
    for name, parameter in model.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_atomically({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg = yacs("t")
    cfg.MODEL.E3VA.PRESET, cfg.MODEL.DEVICE = "swin_nano", "cpu"
    cfg.MODEL.WEIGHTS, cfg.INPUT.MIN_SIZE_TEST = str(tmp_path / "model.pth"), 96
    picture = np.random.default_rng(0).integers(0, 255, (101, 133, 3), dtype=np.uint8)
    theirs = DefaultPredictor(cfg)
    ours = LazyPredictor(ADE, tmp_path / "model.pth", [*small, "train.device=cpu"])
    torch.testing.assert_close(ours(picture)["sem_seg"], theirs(picture)["sem_seg"])
    assert ours.metadata.stuff_classes == theirs.metadata.stuff_classes


def test_every_class_is_drawn_in_a_colour_of_its_own():
    """Half of it over a grey picture; away from edges and names."""
    labels = np.zeros((480, 480), int)
    labels[:, 160:320], labels[:, 320:] = 1, 2
    grey = np.full((480, 480, 3), 100, np.uint8)
    metadata = find_metadata(load_config(CONFIG), NAMES)
    pictures = [draw_labels(grey, labels, metadata) for _ in range(2)]
    assert np.array_equal(*pictures)
    colors = [pictures[0][60, x].astype(int) for x in (60, 240, 420)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(colors[first] - colors[second]).max() > 30
