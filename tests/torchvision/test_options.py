"""The options of a training: those without effect are reported, wrong ones refused early."""

import re

import pytest
import torch

from e3va import UserError
from e3va.highway.config import highway_config
from e3va.torchvision.options import without_effect
from e3va.torchvision.start import start_training


@pytest.mark.parametrize(
    "given, recipe, values",
    [
        ({"trunk_lr": 0.1}, "e3va_chain", ["--trunk-lr"]),
        ({"trunk_lr": 0.1, "adapter_lr": 2.0}, "full", ["--adapter-lr .*full"]),
        ({"trunk_lr": 0.1, "adapter_lr": 2.0}, "frozen", ["--trunk-lr", "--adapter-lr .*frozen"]),
        ({"adapter_lr": 2.0, "trunk_precision": "bf16"}, "e3va", []),
        ({"trunk_precision": "bf16"}, "full", ["--trunk-precision"]),
        ({"trunk_precision": "auto"}, "full", []),
        ({"highway": {"recipe": "frozen", "form": "parallel"}}, "frozen", ["form=parallel"]),
        ({"highway": {"recipe": "full", "shared": True}}, "full", ["shared=True"]),
        ({"highway": {"placement": "inside"}}, "frozen", ["placement=inside"]),
        ({"labels": "maps", "use_crowds": True}, "e3va", ["--use-crowds"]),
        ({"labels": "maps", "max_detections": 7}, "e3va", ["--max-detections"]),
        ({"annotations": "a.json", "max_detections": 7, "keep_empty": True}, "e3va", []),
    ],
)
def test_options_without_effect_are_named(given, recipe, values):
    notes = list(without_effect(given, highway_config(recipe)))
    assert len(notes) == len(values)
    assert all(map(re.search, values, notes))


def test_settings_without_effect_inside_the_trunk_are_named():
    changes = {"placement": "inside", "taps": "sublayer"}
    given = {"trunk_precision": "bf16", "adapter_lr": 2.0, "highway": changes}
    notes = " ".join(without_effect(given, highway_config(**changes)))
    assert "--trunk-precision" in notes and "taps=sublayer" in notes
    assert "placement" not in notes and "--adapter-lr" not in notes


@pytest.mark.parametrize(
    "highway, value",
    [({"kernel": 4}, "kernel 4"), ({"recipe": "e3va", "reduction": 7}, "reduction 7")],
)
def test_a_highway_out_of_range_is_refused_before_data_are_read(highway, value, tmp_path):
    given = {"images": str(tmp_path / "none"), "highway": highway, "preset": "swin_nano"}
    with pytest.raises(UserError, match=value):
        start_training(given, tmp_path, torch.device("cpu"))
