"""A small model with an E³VA backbone, and adapters of it."""

import pytest
import torch
from torch import nn

from e3va import E3VABackbone, SwinTrunk
from e3va.adapter_files.files import save_adapter

CLASSES = ("date", "fig")


class Segmenter(nn.Module):
    """A backbone, a neck with running statistics, and a head as wide as there are classes."""

    def __init__(self, classes=2, preset="swin_nano", **options):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = E3VABackbone(preset, **options)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, images):
        return self.head(self.norm(self.backbone.bottom_up(images)["p0"]))


@pytest.fixture(scope="session")
def pretrained():
    torch.manual_seed(5)
    return {k: torch.randn_like(v) / 8 for k, v in SwinTrunk("swin_nano").state_dict().items()}


def trained(pretrained, seed=0, **options):
    """A model after training: no parameter is zero."""
    torch.manual_seed(seed)
    model = Segmenter(**options)
    model.backbone.bottom_up.trunk.load_state_dict(pretrained)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    model.train()(torch.rand(2, 3, 40, 40))  # running statistics
    return model.eval()


@pytest.fixture
def saved(pretrained, tmp_path):
    """A trained model and the folder of its adapter."""
    model = trained(pretrained)
    save_adapter(
        *(model, tmp_path / "adapter"),
        framework="torchvision",
        model={"model": "segmenter"},
        classes=CLASSES,
        trained_on="8 photographs",
        steps=120,
        scores={"mIoU": 61.5},
    )
    return model, tmp_path / "adapter"
