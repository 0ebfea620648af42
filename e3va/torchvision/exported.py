"""Exported models in onnxruntime: the prediction of ``e3va predict``, without trunk or adapter."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.errors import UserError, brief
from ..utils.optional import require
from .models import ModelConfig, make_transform
from .semantic import resize

SUFFIX = ".onnx"
KEY = "e3va"  # of the description in a file's metadata
FORMAT_VERSION = 1


def is_exported(path: str | Path) -> bool:
    """Return whether a path has the suffix of ONNX files."""
    return Path(path).suffix.lower() == SUFFIX


class OnnxModel(nn.Module):
    """An exported model with the inputs and outputs of the model that it was exported from.

    ``model([image, ...])`` maps images [3, H, W] float32 in 0..1 to dicts, one after another. It
    runs on the CPU.

    Args:
        session: the ``onnxruntime.InferenceSession``.
        config: the model's config.
    """

    def __init__(self, session: Any, config: ModelConfig):
        super().__init__()
        self.session, self.config = session, config
        self.transform = make_transform(config)
        self.eval()

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return the outputs for images of any sizes, see the class."""
        return [self._run(image) for image in images]

    def _run(self, image: Tensor) -> dict[str, Tensor]:
        size = tuple(image.shape[-2:])
        resized, _ = self.transform.resize(self.transform.normalize(image))
        names = [output.name for output in self.session.get_outputs()]
        values = self.session.run(names, {"images": resized[None].numpy()})
        found = {name: torch.from_numpy(v) for name, v in zip(names, values, strict=True)}
        if "logits" in found:
            return {"labels": resize(found["logits"], size)[0].argmax(0)}
        return self.transform.postprocess([found], [tuple(resized.shape[-2:])], [size])[0]


def load_onnx(path: str | Path, detections: int | None = None) -> tuple[OnnxModel, ModelConfig]:
    """Load an ONNX file of ``e3va export``.

    Args:
        path: the file.
        detections: largest number of detections; it must be that of the export, or None.

    Raises:
        UserError: onnxruntime is not installed, the file is none of ``e3va export``, or it holds
            only a backbone or another number of detections.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected a file of e3va export")
    runtime = require("onnxruntime", f"the model {path.name}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class in common
        raise UserError(
            f"{path} cannot be opened with onnxruntime {runtime.__version__}: {brief(error)}; "
            "export the model again with e3va export"
        ) from None
    config = _read_config(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    if detections not in (None, config.detections):
        raise UserError(
            f"--max-detections {detections}: {path} was exported for {config.detections} "
            "detections; export the model again with this option"
        )
    return OnnxModel(session, config), config


def _read_config(text: str | None, path: Path) -> ModelConfig:
    if text is None:
        raise UserError(
            f"{path} is an ONNX file of another program: it has no description of an E³VA model; "
            "expected a file of e3va export"
        )
    try:
        data = json.loads(text)
        version, content = data["version"], data["content"]
    except (ValueError, LookupError, TypeError):
        raise UserError(
            f"{path}: its description cannot be read: export the model again with e3va export"
        ) from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, and this e3va reads {FORMAT_VERSION}: export "
            "the model again"
        )
    if content != "model":
        raise UserError(
            f"{path} is only a backbone, which predicts nothing: export the model without "
            "--backbone-only"
        )
    return ModelConfig.from_dict(data.get("config", {}), str(path))
