"""Trained models as ONNX files, and as programs of :mod:`torch.export`, for any image size."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..backbone import E3VABackbone
from ..highway.highway import HighwayStage
from ..swin.export_form import fresh, make_exportable, pad_to, store_in_half
from ..swin.storage import store_in_8_bits
from ..utils.atomic import make_folder, rename_atomically
from ..utils.errors import UserError, brief, check_choice
from ..utils.optional import require
from .export_heads import detect_in_one_step, detect_in_two_steps
from .exported import FORMAT_VERSION, KEY, SUFFIX
from .models import MEAN, STD, ModelConfig
from .semantic import SemanticFPN, resize

FORMATS = {"onnx": SUFFIX, "torch": ".pt2"}
WEIGHTS = ("fp32", "fp16", "int8")
OPSETS = range(18, 24)  # 18 is the first in which PyTorch's exporter writes
OPSET = 18
LARGEST = 2**14  # pixels of an image's side
STRIDE = 32  # of the last level: the models pad images to multiples of it


class ExportableModel(nn.Module):
    """A model on normalized images of the size that it is to see: without resizing and pasting.

    ``forward`` maps images [B, 3, H, W] to ``{"logits": [B, classes, H, W]}`` for label maps. For
    objects, B is 1, and the result has ``boxes`` [N, 4] (x1 y1 x2 y2 in pixels), ``scores`` [N],
    ``labels`` [N] int64 from 1, and with a mask head ``masks`` [N, 1, side, side]: probabilities
    inside the boxes. All other values are float32; N depends on the image.

    Args:
        model: a model of :func:`e3va.torchvision.build_model`; a changed copy is kept.
        weights: form in which the matrices of the trunk's blocks are stored, one of ``WEIGHTS``.
    """

    def __init__(self, model: nn.Module, weights: str = "fp32"):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        _prepare(self.model.backbone.bottom_up, weights, exact=True)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the results, in their order."""
        if isinstance(self.model, SemanticFPN):
            return ("logits",)
        heads = getattr(self.model, "roi_heads", None)
        masks = ("masks",) if heads is not None and heads.has_mask() else ()
        return ("boxes", "scores", "labels", *masks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the model's results, see the class."""
        size = images.shape[2:]
        padded = [STRIDE * fresh((side + STRIDE - 1) // STRIDE) for side in size]
        features = self.model.backbone(pad_to(images, padded))
        if isinstance(self.model, SemanticFPN):
            logits = resize(self.model.sem_seg_head(features), padded)
            for dim, side in ((2, size[0]), (3, size[1])):
                logits = logits.index_select(dim, torch.arange(side))
            return {"logits": logits}
        two_steps = hasattr(self.model, "rpn")
        detect = detect_in_two_steps if two_steps else detect_in_one_step
        return detect(self.model, features, size, padded)


class ExportableBackbone(nn.Module):
    """A backbone that maps normalized images [B, 3, H, W] to the levels of its pyramid."""

    def __init__(self, backbone: E3VABackbone, weights: str = "fp32"):
        super().__init__()
        self.backbone = copy.deepcopy(backbone).cpu().eval().requires_grad_(False)
        _prepare(self.backbone, weights, exact=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the results, in their order."""
        return self.backbone.out_features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return {p_s: [B, C_s, ceil(H / 2^(s+2)), ceil(W / 2^(s+2))]}."""
        return self.backbone(images)


def _prepare(backbone: E3VABackbone, weights: str, exact: bool) -> None:
    check_choice("weights", weights, WEIGHTS)
    trunk = backbone.trunk.float()
    if weights == "int8":
        store_in_8_bits(trunk)
    elif weights == "fp16":
        store_in_half(trunk)
    make_exportable(trunk, exact)
    for stage in backbone.highway.modules():
        if isinstance(stage, HighwayStage):
            stage.keep = None  # plain modules


@torch.no_grad()
def to_program(model: ExportableModel | ExportableBackbone) -> ExportedProgram:
    """Export a model for images of any size; see the classes for its inputs and outputs.

    Raises:
        UserError: PyTorch cannot export an operator of the model.
    """
    batch = Dim("batch", min=1, max=1024)
    if isinstance(model, ExportableModel) and model.outputs != ("logits",):
        batch = None
    sides = {2: Dim("height", min=1, max=LARGEST), 3: Dim("width", min=1, max=LARGEST)}
    example = torch.zeros(1 if batch is None else 2, 3, 70, 101)
    shape = {0: batch, **sides} if batch is not None else sides
    with _quiet():
        try:
            return torch.export.export(model, (example,), dynamic_shapes=(shape,), strict=False)
        except (RuntimeError, NotImplementedError) as error:
            raise _not_exported("torch.export", error) from None


def write_program(
    program: ExportedProgram,
    outputs: tuple[str, ...],
    description: dict[str, Any],
    output: Path,
    opset: int = OPSET,
) -> None:
    """Write a program of :func:`to_program` as an ONNX file, or for the suffix .pt2 as it is.

    Args:
        program: the program.
        outputs: the names of its results.
        description: what the file says about the model, see :func:`describe`.
        output: the file, which is replaced only when the new one is whole.
        opset: version of ONNX's operators.

    Raises:
        UserError: onnxscript is not installed, the exporter lacks an operator, or the file cannot
            be written.
    """
    text = json.dumps(description)
    make_folder(output.parent)
    if output.suffix == FORMATS["torch"]:
        with rename_atomically(output) as temporary, open(temporary, "wb") as file:
            torch.export.save(program, file, extra_files={f"{KEY}.json": text})
        return
    for package in ("onnx", "onnxscript"):
        require(package, "ONNX export")
    with _quiet():
        try:
            exported = torch.onnx.export(
                program,
                input_names=["images"],
                output_names=list(outputs),
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise _not_exported(f"ONNX opset {opset}", error) from None
    exported.model.metadata_props[KEY] = text
    with rename_atomically(output) as temporary:
        exported.save(temporary)


def describe(config: ModelConfig, weights: str, backbone_only: bool = False) -> dict[str, Any]:
    """Return the description of an exported model, as plain values for JSON.

    ``config`` has the classes, the category ids, and the sides to which images are resized.
    """
    return {
        "version": FORMAT_VERSION,
        "content": "backbone" if backbone_only else "model",
        "weights": weights,
        "mean": MEAN,
        "std": STD,
        "config": config.to_dict(),
    }


def _not_exported(target: str, error: BaseException) -> UserError:
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return UserError(
        f"the model cannot be exported to {target}: {brief(causes[-1])}; an adapter kind may have "
        "an operator that the target lacks: try another --opset, or an output NAME.pt2"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings, which are about their own code."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
