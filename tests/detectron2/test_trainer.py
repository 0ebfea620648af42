"""The trainer freezes and proves the trunk, and its settings do what they say."""

import json
import logging

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.utils.events import EventStorage
from torch import nn

from e3va import TrunkNotFrozenError, UserError
from e3va.detectron2 import E3VASwin, HighwayTrainer, engine
from e3va.detectron2.backbone import model_parts
from e3va.detectron2.trainer import split_batch
from e3va.utils.measure import MIB


class MeanModel(nn.Module):
    """A model with a loss that is a mean over its images, so the exact result can be computed."""

    def __init__(self):
        super().__init__()
        self.backbone = E3VASwin("swin_nano", {"rank": 2}, out_features=["p3"], memory="plain")
        for name, parameter in self.backbone.highway.named_parameters():
            if name.endswith("up.weight"):  # zero at the start: hides the other factors' gradients
                nn.init.normal_(parameter, std=0.1)
        self.head = nn.Linear(128, 1)

    def forward(self, batch):
        features = self.backbone(torch.stack([image for image, _ in batch]))["p3"]
        scores = self.head(features.mean(dim=(2, 3)))[:, 0]
        targets = torch.stack([target for _, target in batch])
        return {"loss_square": (scores - targets).square().mean(), "loss_size": scores.abs().mean()}


def toy(count=5, optimizer=torch.optim.SGD, lr=0.1, **settings):
    torch.manual_seed(1)
    model = MeanModel().double()
    batch = [(torch.rand(3, 32, 32).double(), torch.rand(()).double()) for _ in range(count)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    return HighwayTrainer(model, [batch] * 9, optimizer(parameters, lr=lr), **settings)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("parts", [2, 3, 5, 9])
def test_accumulation_equals_the_large_batch(parts):
    whole, divided = toy(), toy(accumulate=parts)
    for trainer in (whole, divided):
        trainer.train(0, 3)
    expected = weights(whole)
    for name, value in weights(divided).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-11)
    logged = [t.storage.history("loss_square").latest() for t in (whole, divided)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-9)


def test_accumulation_keeps_one_part_in_memory_at_a_time():
    sizes = []
    trainer = toy(count=4, accumulate=2)
    forward = trainer.model.forward
    trainer.model.forward = lambda batch: sizes.append(len(batch)) or forward(batch)
    trainer.train(0, 1)
    assert sizes == [2, 2]


@pytest.mark.parametrize(("length", "parts"), [(5, 2), (7, 3), (2, 9), (1, 1)])
def test_parts_are_even_complete_and_in_order(length, parts):
    batch = list(range(length))
    divided = split_batch(batch, parts)
    assert [item for part in divided for item in part] == batch
    sizes = [len(part) for part in divided]
    assert len(divided) == min(parts, length) and max(sizes) - min(sizes) <= 1


def test_clipping_limits_the_step():
    """With plain SGD at rate 1 the step is the gradient."""
    free, clipped = toy(lr=1.0), toy(lr=1.0, clip_norm=1e-3)
    steps = []
    for trainer in (free, clipped):
        before = weights(trainer)
        trainer.train(0, 1)
        steps.append({k: v - before[k] for k, v in weights(trainer).items()})
    norms = [sum(v.square().sum() for v in step.values()).sqrt().item() for step in steps]
    assert norms[0] > 1e-2
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)
    logged = clipped.storage.history("grad_norm").latest()
    assert logged == pytest.approx(norms[0], rel=1e-6)


def test_clipping_measures_the_gradient_and_not_its_scaled_form():
    """Under fp16 the loss, and with it every gradient, is multiplied by a large factor."""
    trainer = in_float32(toy(lr=1.0, clip_norm=1e-3, precision="fp16"))
    set_scale(trainer, 64.0)
    before = weights(trainer)
    trainer.train(0, 1)
    step = sum((v - before[k]).square().sum() for k, v in weights(trainer).items()).sqrt()
    assert step.item() == pytest.approx(1e-3, rel=1e-2)


def test_an_overflow_under_fp16_skips_the_step_and_halves_the_scale():
    trainer = in_float32(toy(precision="fp16", clip_norm=1.0))
    set_scale(trainer, 2.0**100)
    before = weights(trainer)
    trainer.train(0, 1)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert get_scale(trainer) == 2.0**99


def get_scale(trainer):
    return trainer.optimizer_step.scaler.get_scale()


def set_scale(trainer, value):
    scaler = trainer.optimizer_step.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": value})


def in_float32(trainer):
    """Autocast does not touch float64."""
    trainer.model.float()
    trainer.data_loader = [[(i.float(), t.float()) for i, t in b] for b in trainer.data_loader]
    return trainer


def test_trunk_keeps_its_bytes_and_the_highway_learns(small_config, tmp_path):
    small_config.train.max_iter = 3
    (tmp_path / "output").mkdir()
    trainer, _ = engine.build_trainer(small_config)
    before = weights(trainer)
    trainer.train(0, 3)
    after = weights(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if ".trunk." in name]
    adapters = {name for name in before if ".highway." in name and ".up." in name}
    assert adapters and adapters <= changed
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in trainer.trunk.parameters()}
    assert not trainer.trunk.training and trainer.model.training


@pytest.mark.parametrize("recipe", ["frozen", "full"])
def test_the_baselines_train_the_right_parts(small_config, tmp_path, recipe):
    small_config.model.backbone.bottom_up.highway = {"recipe": recipe}
    small_config.train.max_iter = 2
    (tmp_path / "output").mkdir()
    trainer, _ = engine.build_trainer(small_config)
    before = weights(trainer)
    trainer.train(0, 2)
    changed = {name for name, value in weights(trainer).items() if (value != before[name]).any()}
    assert any(".trunk." in name for name in changed) == (recipe == "full")
    assert any(".out_norm." in name for name in changed)


def test_a_trunk_parameter_in_the_optimizer_is_refused():
    trainer = toy()
    trainer.optimizer.add_param_group({"params": [trainer.trunk.patch_embed.proj.weight]})
    trainer.run_step = lambda: pytest.fail("the proof comes before the first step")
    with pytest.raises(TrunkNotFrozenError, match="patch_embed.proj.weight is in the optimizer"):
        trainer.train(0, 1)


def test_a_trunk_parameter_that_requires_grad_is_refused():
    trainer = toy()
    trainer.trunk.layers[1].blocks[0].mlp.fc1.bias.requires_grad_(True)
    with pytest.raises(TrunkNotFrozenError, match="layers.1.blocks.0.mlp.fc1.bias requires grad"):
        trainer.train(0, 1)


def test_a_gradient_that_reaches_the_trunk_during_training_is_refused():
    trainer = toy()
    step = trainer.before_step

    def thaw():
        step()
        if trainer.iter == 1:
            weight = trainer.trunk.layers[0].downsample.reduction.weight
            weight.grad = torch.zeros_like(weight)

    trainer.before_step = thaw
    with pytest.raises(TrunkNotFrozenError, match="layers.0.downsample.reduction.weight got a"):
        trainer.train(0, 3)
    assert trainer.iter == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains_on_cpu(small_config, tmp_path, precision):
    cfg = small_config
    cfg.train.amp.enabled = precision != "fp32"
    cfg.train.amp.dtype = precision if precision != "fp32" else "bf16"
    cfg.optimizer.lr = 2e-3
    (tmp_path / "output").mkdir()
    trainer, _ = engine.build_trainer(cfg)
    trainer.train(0, 12)
    assert trainer.optimizer_step.scaler.is_enabled() == (precision == "fp16")
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert sum(losses[-3:]) < sum(losses[:3])
    dtypes = {p.dtype for p in trainer.optimizer_step.parameters}
    assert dtypes == {torch.float32}


def test_autocast_reaches_the_model():
    seen = []
    trainer = toy(precision="bf16")
    forward = trainer.model.forward

    def spy(batch):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return forward(batch)

    trainer.model.forward = spy
    in_float32(trainer)
    trainer.train(0, 1)
    assert seen == [(True, torch.bfloat16)]


def test_loss_scale_is_saved_and_restored():
    first, second = (in_float32(toy(precision="fp16")) for _ in range(2))
    first.train(0, 1)
    first.optimizer_step.scaler.update(2.0)
    second.load_state_dict(first.state_dict())
    assert get_scale(second) == 2.0 != get_scale(toy(precision="fp16"))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="precision 'int8': expected one of fp32, bf16, fp16"):
        toy(precision="int8")
    with pytest.raises(UserError, match="train.accumulate=0"):
        toy(accumulate=0)


def test_more_parts_than_images_are_refused_before_training(small_config):
    small_config.train.accumulate = 3  # of the two images in a batch
    with pytest.raises(UserError) as caught:
        engine.build_trainer(small_config)
    line = caught.value.line
    assert "train.accumulate=3 with 2 images per process: expected at most 2" in line
    assert "dataloader.train.total_batch_size" in line


def test_report_of_trained_parts_and_kept_bytes(small_config, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="e3va")
    logging.getLogger("e3va").propagate = True
    small_config.train.max_iter = 1
    small_config.train.accumulate = 2
    (tmp_path / "output").mkdir()
    trainer, _ = engine.build_trainer(small_config)
    trainer.train(0, 1)
    text = caplog.text
    model = trainer.model
    for part, module in model_parts(model).items():
        total = sum(p.numel() for p in module.parameters())
        trained = 0 if part == "trunk" else total
        row = next(line for line in text.splitlines() if line.startswith(part))
        assert row.split()[1:3] == [f"{total:,}", f"{trained:,}"]
    assert text.index("What trains") < text.index("A step on 1 images keeps")
    reported = float(text.split("images keeps ")[1].split(" MiB")[0].replace(",", ""))
    backbone = model.backbone.bottom_up
    trained = sum(p.numel() for p in backbone.highway.parameters())
    share = 100 * trained / sum(p.numel() for p in backbone.parameters())
    assert f"Of the backbone {share:.2f}% trains" in text

    again = instantiate(small_config.model)
    again.load_state_dict(trainer_start_state(small_config))
    batch = next(iter(instantiate(small_config.dataloader.train)))
    expected = independent_saved_mib(again.train(), batch[:1], small_config.train.seed)
    assert reported == pytest.approx(expected, abs=0.06)  # one decimal is printed


def trainer_start_state(cfg):
    torch.manual_seed(0)
    return instantiate(cfg.model).state_dict()


def independent_saved_mib(model, batch, seed):
    """Autograd's saved tensors counted without the project's code."""
    from e3va.utils.seeding import seed_everything

    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    seed_everything(seed, 0, 0)
    with EventStorage(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        losses = model(batch)
    assert losses
    return sum(storage.nbytes() for storage in kept.values()) / MIB


def test_a_config_on_detectron2s_own_train_settings_and_loader_trains(small_config, tmp_path):
    cfg = small_config
    cfg.train = model_zoo.get_config("common/train.py").train
    cfg.train.update(device="cpu", max_iter=2, eval_period=0, output_dir=str(tmp_path))
    own = cfg.dataloader.train
    cfg.dataloader.train = LazyCall(build_detection_train_loader)(
        dataset=own.dataset, mapper=own.mapper, total_batch_size=2, num_workers=0
    )
    trainer = engine.train(cfg)
    assert trainer.iter == 2 and (tmp_path / "model_final.pth").is_file()


def test_metrics_are_logged_as_detectron2_does(small_config, tmp_path):
    small_config.train.max_iter = 6
    small_config.train.clip_norm = 1.0
    (tmp_path / "output").mkdir()
    engine.train(small_config)
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    records = [line for line in map(json.loads, lines) if "total_loss" in line]
    first, last = records[0], records[-1]
    for key in ("total_loss", "loss_mask", "loss_rpn_cls", "lr", "eta_seconds", "time", "max_mem"):
        assert key in last, key
    # Later records are medians over steps, as Detectron2 smooths them.
    parts = [value for key, value in first.items() if key.startswith("loss_")]
    assert first["total_loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert last["grad_norm"] > 0 and 100 < last["max_mem"] < 100_000  # MiB
    assert list((tmp_path / "output").glob("events.out.tfevents.*"))
