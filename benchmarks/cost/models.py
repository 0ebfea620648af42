"""The model of a method in a framework, with the batch on which it trains."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from e3va.utils.errors import UserError

from .batch import CLASSES, detectron2_examples, draw, torchvision_examples
from .methods import make_bottom_up

FRAMEWORKS = ("detectron2", "torchvision")
ALONE = "none"  # the framework of a backbone without neck and heads


@dataclass(frozen=True)
class Spec:
    """The work of one process.

    Attributes:
        method: a key of :data:`cost.methods.METHODS`.
        preset: geometry of the trunk, see :data:`e3va.swin.presets.PRESETS`.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (autocast).
        framework: one of ``FRAMEWORKS``, or ``ALONE``.
        device: cpu, cuda or cuda:N.
        height: height of the images in pixels.
        width: width of the images in pixels.
        batch: number of images in a step.
        rank: rank of LoRA and of bottleneck adapters.
        cap: most memory in GiB that the process may allocate on its GPU; None for no limit.
        shared: folder of frozen weights, see :mod:`cost.sharing`; None for no sharing.
    """

    method: str
    preset: str
    precision: str
    framework: str
    device: str
    height: int
    width: int
    batch: int = 1
    rank: int = 16
    cap: float | None = None
    shared: str | None = None


class Subject:
    """A model that is measured; there is a subclass for each framework.

    Attributes:
        model: on its device, ready to train.
        bottom_up: the backbone without the neck.
        pyramid: the module that calls the backbone and then the neck; None without a neck.
        parts: disjoint submodules by the names trunk, highway, neck and heads.
    """

    def __init__(self, spec: Spec):
        self.device = torch.device(spec.device)
        self.model = self.build(spec).to(self.device).train()
        self.prepare(spec.precision != "fp32")
        self.bottom_up, self.pyramid = self.find()
        self.parts = self._parts()
        self.load(spec.height, spec.width, spec.batch)

    def build(self, spec: Spec) -> nn.Module:
        """Build the model on the CPU."""
        raise NotImplementedError

    def prepare(self, mixed: bool) -> None:
        """Apply the model's memory mode."""
        raise NotImplementedError

    def find(self) -> tuple[nn.Module, nn.Module | None]:
        """Return ``bottom_up`` and ``pyramid``."""
        return self.model.backbone.bottom_up, self.model.backbone

    def load(self, height: int, width: int, batch: int) -> None:
        """Draw the batch of :meth:`loss`."""
        raise NotImplementedError

    def loss(self) -> Tensor:
        """Run forward and return the loss."""
        raise NotImplementedError

    def _parts(self) -> dict[str, nn.Module]:
        if hasattr(self.bottom_up, "trunk"):
            parts = {"trunk": self.bottom_up.trunk, "highway": self.bottom_up.highway}
        else:
            parts = {"trunk": self.bottom_up}
        if self.pyramid is not None:
            parts["neck"] = _children_but(self.pyramid, "bottom_up")
            parts["heads"] = _children_but(self.model, "backbone")
        return parts


def _children_but(module: nn.Module, left_out: str) -> nn.ModuleList:
    return nn.ModuleList(child for name, child in module.named_children() if name != left_out)


def _prepare_model(framework: str, model: nn.Module, mixed: bool) -> None:
    importlib.import_module(f"e3va.{framework}.lean").prepare_model(model, mixed)


def _images(height: int, width: int, batch: int) -> list:
    return [draw(height, width, seed) for seed in range(batch)]


class Detectron2Subject(Subject):
    """Detectron2's Cascade Mask R-CNN of this project's configs."""

    def build(self, spec: Spec) -> nn.Module:
        from detectron2.config import LazyCall, instantiate

        from e3va.detectron2 import E3VASwin, load_config

        model = load_config("COCO/cascade_mask_rcnn_e3va_swin_t_1x.py").model
        make = partial(make_bottom_up, spec.method, spec.preset, spec.rank, E3VASwin)
        model.backbone.bottom_up = LazyCall(make)()
        model.backbone.in_features = ["p0", "p1", "p2", "p3"]
        model.roi_heads.num_classes = CLASSES
        return instantiate(model)

    def prepare(self, mixed: bool) -> None:
        if hasattr(self.model.backbone.bottom_up, "trunk"):  # not Detectron2's own Swin
            _prepare_model("detectron2", self.model, mixed)

    def load(self, height: int, width: int, batch: int) -> None:
        self.batch = detectron2_examples(_images(height, width, batch), self.device)

    def loss(self) -> Tensor:
        from detectron2.utils.events import EventStorage

        with EventStorage():
            return sum(self.model(self.batch).values())


class TorchvisionSubject(Subject):
    """Cascade Mask R-CNN of torchvision's parts."""

    def build(self, spec: Spec) -> nn.Module:
        from e3va.swin.presets import get_preset
        from e3va.torchvision.models import ModelConfig, build_model, default_heads

        preset = get_preset(spec.preset)
        config = ModelConfig(
            model="cascade_mask_rcnn",
            classes=tuple(map(str, range(CLASSES))),
            preset=preset,
            trunk="random",
            heads=default_heads(preset),
            size=min(spec.height, spec.width),
            max_size=max(spec.height, spec.width),
            jitter=(1.0, 1.0),
        )
        bottom_up = make_bottom_up(spec.method, spec.preset, spec.rank)
        return build_model(config, bottom_up=bottom_up)

    def prepare(self, mixed: bool) -> None:
        _prepare_model("torchvision", self.model, mixed)

    def load(self, height: int, width: int, batch: int) -> None:
        self.batch = torchvision_examples(_images(height, width, batch), self.device)
        transform = self.model.transform  # images go in at their own size
        transform.min_size, transform.max_size = (min(height, width),), max(height, width)

    def loss(self) -> Tensor:
        return sum(self.model(*self.batch).values())


class BackboneSubject(Subject):
    """A backbone without neck and heads; the loss is the sum of the levels' mean squares."""

    def build(self, spec: Spec) -> nn.Module:
        return make_bottom_up(spec.method, spec.preset, spec.rank)

    def prepare(self, mixed: bool) -> None:
        if hasattr(self.model, "prepare"):
            self.model.prepare(mixed)

    def find(self) -> tuple[nn.Module, nn.Module | None]:
        return self.model, None

    def load(self, height: int, width: int, batch: int) -> None:
        images = torch.stack([one.image for one in _images(height, width, batch)])
        self.batch = images.to(self.device).float() / 127.5 - 1

    def loss(self) -> Tensor:
        features: Mapping[str, Tensor] = self.model(self.batch)
        return sum(level.float().square().mean() for level in features.values())


SUBJECTS: dict[str, type[Subject]] = {
    "detectron2": Detectron2Subject,
    "torchvision": TorchvisionSubject,
    ALONE: BackboneSubject,
}


def pick_framework(name: str | None) -> str:
    """Return the framework of that name; for None Detectron2 if it is installed, else torchvision.

    Raises:
        UserError: an unknown framework, or one that is not installed.
    """
    if name is not None and name not in FRAMEWORKS:
        raise UserError(f"--framework {name}: expected {' or '.join(FRAMEWORKS)}")
    for framework in (name,) if name else FRAMEWORKS:
        try:
            importlib.import_module(f"e3va.{framework}")
            return framework
        except UserError:
            if framework in (name, FRAMEWORKS[-1]):
                raise
