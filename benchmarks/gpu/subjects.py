"""The models and the data of the checks."""

import contextlib
import io
from pathlib import Path
from unittest import mock

import torch
from cost.batch import Drawn, draw
from cost.limits import DTYPES
from PIL import Image, ImageDraw
from torch import Tensor, nn

from e3va.cli.main import main as e3va
from e3va.swin.presets import get_preset
from e3va.torchvision.models import MODELS, ModelConfig, build_model
from e3va.torchvision.trainer import MODEL, Trainer
from e3va.utils.errors import UserError
from e3va.weights.checkpoint import load_file

TORCHVISION_MODELS = tuple(MODELS)
SIZE = (96, 128)
COUNT = 3  # classes of the small models
IGNORED = 255
STEPS = 8  # of a training


def frameworks() -> tuple[str, ...]:
    """Return the frameworks that are installed."""
    return ("torchvision", "detectron2") if has_detectron2() else ("torchvision",)


def has_detectron2() -> bool:
    """Return whether Detectron2 is installed, and of a version that fits."""
    try:
        import e3va.detectron2  # noqa: F401
    except UserError:
        return False
    return True


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of mixed precision; of none for ``"fp32"``."""
    mixed = precision != "fp32"
    return torch.autocast(device.type, DTYPES[precision] if mixed else None, enabled=mixed)


def build(framework: str, model: str) -> nn.Module:
    """Build a small model on the CPU; all its adapters have random weights."""
    torch.manual_seed(0)
    built = _torchvision(model) if framework == "torchvision" else _detectron2_semantic()
    generator = torch.Generator().manual_seed(1)
    for parameter in built.backbone.bottom_up.highway.parameters():
        if not parameter.any():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return built


def _torchvision(model: str) -> nn.Module:
    config = ModelConfig(
        model=model,
        classes=tuple(map(str, range(COUNT))),
        preset=get_preset("swin_nano"),
        trunk="random",
        heads="light",
        size=min(SIZE),
        max_size=max(SIZE),
        jitter=(1.0, 1.0),
    )
    return build_model(config)


def _detectron2_semantic() -> nn.Module:
    from detectron2.config import instantiate

    from e3va.detectron2 import load_config

    cfg = load_config("ADE20K/semantic_fpn_e3va_swin_t_80k.py").model
    cfg.backbone.bottom_up.preset = "swin_nano"
    cfg.sem_seg_head.num_classes = COUNT
    return instantiate(cfg)


def semantic_loss(framework: str, model: nn.Module, device: torch.device, precision: str) -> Tensor:
    """Return the loss of a semantic FPN on a drawn batch."""
    drawn = [draw(*SIZE, seed) for seed in range(2)]
    labels = [label_map(one).to(device) for one in drawn]
    dtype = next(p.dtype for p in model.parameters() if p.requires_grad)
    with autocast(device, precision):
        if framework == "torchvision":
            images = [one.image.to(device, dtype) / 255 for one in drawn]
            losses = model(images, [{"labels": label} for label in labels])
        else:
            from detectron2.utils.events import EventStorage

            batch = [
                {"image": one.image.to(device), "sem_seg": label}
                for one, label in zip(drawn, labels, strict=True)
            ]
            with EventStorage():
                losses = model(batch)
    return sum(losses.values())


def label_map(drawn: Drawn) -> Tensor:
    """Return the labels [H, W] of an image: its objects' classes, modulo ``COUNT``."""
    sheet = Image.new("L", drawn.image.shape[:0:-1], IGNORED)
    pen = ImageDraw.Draw(sheet)
    for points, number in zip(drawn.polygons, drawn.classes, strict=True):
        pen.polygon(points, fill=number % COUNT)
    flat = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
    return flat.view(drawn.image.shape[1:]).long()


def write_data(folder: Path, count: int = 6) -> None:
    """Write images and label maps into ``folder``/images and ``folder``/labels."""
    if folder.is_dir():
        return
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in range(count):
        drawn = draw(*SIZE, seed)
        pixels = drawn.image.permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{seed}.png")
        labels = label_map(drawn).to(torch.uint8).numpy()
        Image.fromarray(labels).save(folder / "labels" / f"{seed}.png")


def train(
    device: torch.device, data: Path, output: Path, stop: bool = False, resume: bool = False
) -> dict[str, Tensor]:
    """Run ``e3va train``, and return the weights of the model that it wrote.

    Args:
        device: the device of the training.
        data: folder of the drawn data, which is written if it is not there.
        output: output folder.
        stop: whether the training stops in the middle, as by Ctrl-C; then there are no weights.
        resume: whether to resume the training of that folder.
    """
    write_data(data)
    options = {
        "--images": data / "images",
        "--labels": data / "labels",
        "--classes": ",".join(map(str, range(COUNT))),
        "--preset": "swin_nano",
        "--trunk": "random",
        "--size": min(SIZE),
        "--steps": STEPS,
        "--checkpoint-every": STEPS // 2,
        "--device": device,
        "--output": output,
    }
    words = [str(word) for pair in options.items() for word in pair]
    after_step = Trainer.after_step

    def stopping(trainer: Trainer) -> None:
        after_step(trainer)
        if stop and trainer.step == STEPS // 2:
            raise KeyboardInterrupt

    said = io.StringIO()
    with (
        mock.patch.object(Trainer, "after_step", stopping),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        status = e3va(["train", *words, *["--resume"] * resume])
    if stop:
        return {}
    if status:
        raise UserError(f"e3va train ended with status {status}: {said.getvalue()[-300:]}")
    return load_file(output / MODEL)["model"]
