"""A run that was stopped, even killed, and resumed is the uninterrupted run."""

import os
import random
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from e3va import UserError
from e3va.detectron2 import engine, load_config
from e3va.detectron2.loader import TrainLoader

CONFIG = "custom/cascade_mask_rcnn_e3va_swin_t.py"

STOPPED_AT, LENGTH = 3, 6


class Stop(Exception):
    """Interrupts a run between two steps."""


def train(config, folder, *, steps=LENGTH, stop_at=None, resume=False, workers=0):
    cfg = config.copy()
    cfg.train.output_dir = str(folder)
    cfg.train.max_iter = steps
    cfg.train.checkpointer.period = STOPPED_AT
    cfg.dataloader.train.num_workers = workers
    folder.mkdir(exist_ok=True)
    torch.manual_seed(5)
    trainer, checkpointer = engine.build_trainer(cfg)
    if stop_at is not None:
        step = trainer.before_step

        def before_step():
            if trainer.iter == stop_at:
                raise Stop
            step()

        trainer.before_step = before_step
    checkpointer.resume_or_load("", resume=resume)
    try:
        trainer.train(trainer.iter + 1 if resume else 0, steps)
    finally:
        trainer._data_loader_iter_obj = None  # stops its workers at once
    return trainer


def state(trainer):
    optimizer = trainer.optimizer.state_dict()["state"]
    tensors = dict(trainer.model.state_dict())
    for index, values in optimizer.items():
        tensors.update({f"optimizer.{index}.{key}": value for key, value in values.items()})
    return tensors


@pytest.mark.parametrize(
    ("workers", "precision", "memory"),
    [(0, "fp16", "standard"), (2, "fp32", "standard"), (0, "bf16", "lean"), (0, "fp32", "lean")],
)
def test_resumed_run_ends_with_the_same_bits(small_config, tmp_path, workers, precision, memory):
    """Under fp16, the loss scale that the first steps found is restored too."""
    small_config.train.amp.enabled = precision == "fp16"
    small_config.train.amp.dtype = precision
    small_config.model.backbone.bottom_up.memory = memory
    whole = state(train(small_config, tmp_path / "whole"))
    # One step past the checkpoint is lost and must be done again, the same.
    with pytest.raises(Stop):
        train(small_config, tmp_path / "parts", stop_at=STOPPED_AT + 1, workers=workers)
    resumed = state(train(small_config, tmp_path / "parts", resume=True, workers=workers))
    assert whole.keys() == resumed.keys()
    differing = [key for key in whole if not torch.equal(whole[key], resumed[key])]
    assert differing == []


def test_another_seed_gives_another_run(small_config, tmp_path):
    first = state(train(small_config, tmp_path / "a", steps=2))
    other = small_config.copy()
    other.train.seed = 1
    trainer = train(other, tmp_path / "b", steps=2)
    assert trainer.seed == trainer.data_loader.seed == 1
    second = state(trainer)
    assert any(not torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_killed_while_saving_resumes_from_the_checkpoint_before(small_overrides, tmp_path):
    """SIGKILL with half of the second checkpoint written."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        import torch
        from e3va.detectron2 import engine, load_config

        save, saved = torch.save, []

        def save_then_die(data, file):
            saved.append(file)
            if len(saved) == 2:
                save(data, file)
                file.flush()
                file = file.file  # of the wrapper that keeps the error of a write
                os.truncate(file.fileno(), os.path.getsize(file.name) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            save(data, file)

        torch.save = save_then_die
        cfg = load_config(sys.argv[1], sys.argv[2:])
        engine.resolve_classes(cfg)
        os.makedirs(cfg.train.output_dir, exist_ok=True)
        engine.train(cfg)
        """
    )
    overrides = [*small_overrides, "train.max_iter=3", "train.checkpointer.period=1"]
    command = [sys.executable, "-c", script, CONFIG, *overrides]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "output"
    assert (folder / "last_checkpoint").read_text() == "model_0000000.pth"
    assert len(list(folder.glob(".*.tmp"))) == 1
    cfg = load_config(CONFIG, overrides)
    engine.resolve_classes(cfg)
    assert engine.train(cfg, resume=True).start_iter == 1
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert list(folder.glob(".*.tmp")) == []
    torch.load(folder / "model_final.pth", weights_only=True)


def test_missing_or_broken_last_checkpoint_is_one_clear_line(small_config, tmp_path):
    folder = tmp_path / "output"
    train(small_config, folder, steps=1)
    broken = folder / "model_final.pth"
    os.truncate(broken, 1000)
    with pytest.raises(UserError, match="model_final.pth cannot be read"):
        train(small_config, folder, resume=True)
    broken.unlink()
    with pytest.raises(UserError, match="last_checkpoint names .*model_final.pth"):
        train(small_config, folder, resume=True)


def take(stream, count):
    iterator = iter(stream)
    return [next(iterator) for _ in range(count)]


def augment(record):
    """The image, and a random choice of each kind that a mapper may make."""
    return record["index"], random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.parametrize("workers", [0, 2])
def test_random_choices_depend_only_on_seed_and_place(workers):
    records = [{"width": 2, "height": 1, "index": index} for index in range(3)]
    whole = take(TrainLoader(records, augment, 2), 6)
    for kind in (1, 2, 3):  # an image that comes again is augmented anew
        assert len({example[kind] for batch in whole for example in batch}) == 12
    later = TrainLoader(records, augment, 2, num_workers=workers)
    later.seek(2)
    torch.manual_seed(77)
    assert take(later, 4) == whole[2:]
    other = take(TrainLoader(records, augment, 2, num_workers=workers, seed=1), 6)
    for kind in (1, 2, 3):
        values = [{example[kind] for batch in run for example in batch} for run in (whole, other)]
        assert not values[0] & values[1]


def test_processes_share_the_stream_without_overlap(monkeypatch):
    """Three simulated processes together see each place once."""
    from e3va.detectron2 import loader

    seen = []
    monkeypatch.setattr(loader.comm, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(loader.comm, "get_rank", lambda rank=rank: rank)
        records = [{"width": 2, "height": 1, "index": index} for index in range(5)]
        batches = take(TrainLoader(records, augment, 6), 5)
        assert [len(batch) for batch in batches] == [2] * 5
        seen += [example[1] for batch in batches for example in batch]
    assert len(set(seen)) == 30  # no random choice twice: no two processes had the same place
    record = {"width": 2, "height": 1}
    with pytest.raises(UserError, match="total_batch_size=4: expected a multiple of the 3 proc"):
        TrainLoader([record], dict, 4)


def test_loader_refuses_what_it_cannot_do():
    record = {"width": 2, "height": 1}
    with pytest.raises(UserError, match="total_batch_size=0"):
        TrainLoader([record], dict, 0)
    with pytest.raises(UserError, match="train.seed=-1"):
        TrainLoader([record], dict, 1, seed=-1)
    with pytest.raises(UserError, match="empty"):
        TrainLoader([], dict, 1)
