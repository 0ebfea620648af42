"""Mutated COCO files end in one line before the first step, or in a trained and scored model."""

import json

import pytest
import torch

from e3va import UserError
from e3va.torchvision.start import start_training
from e3va.torchvision.trainer import METRICS, MODEL, SUMMARY

from ..data.mutations import SEEDS, write_mutation

TINY = {"trunk": "random", "preset": "swin_nano", "highway": {"rank": 4}}
SIZE = {"size": 32, "max_size": 64, "steps": 1, "batch_size": 2}


@pytest.mark.slow
def test_mutated_files_are_refused_before_the_first_step_or_train(tmp_path):
    trained = 0
    for seed in SEEDS:
        file, images, change = write_mutation(tmp_path / str(seed), seed)
        data = {"images": str(images), "annotations": str(file)}
        validation = {f"val_{name}": value for name, value in data.items()}
        folder = tmp_path / str(seed) / "out"
        try:
            trainer = start_training({**TINY, **SIZE, **data, **validation}, folder, CPU)
        except UserError as error:
            assert len(str(error).splitlines()) == 1, change
            assert not folder.exists(), change
            continue
        try:
            trainer.train()
        except Exception as error:
            pytest.fail(f"{change}: {error!r}")
        assert (folder / MODEL).is_file(), change
        for text in (*(folder / METRICS).read_text().splitlines(), (folder / SUMMARY).read_text()):
            json.loads(text, parse_constant=pytest.fail)
        trained += 1
    assert 0 < trained < len(SEEDS)


CPU = torch.device("cpu")
