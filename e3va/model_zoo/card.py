"""The model card of an adapter on the Hugging Face Hub: README.md with its metadata."""

import json
from typing import Any

from ..adapter_files.description import AdapterConfig
from ..swin.presets import preset_name
from .hub import parse_hub_address
from .rows import HUB

_CARD = """\
---
{metadata}
---

# {name}

An adapter for a frozen Swin Transformer ({preset}), trained with E³VA for Detectron2: {what}.
The repository has the weights of highway, neck and heads. e3va downloads the frozen trunk from its
own address.

| | |
|---|---|
{facts}
{scores}
## Use

{use}
"""
_TABLE = """
## Scores on validation data

| score | value |
|---|---:|
{rows}
"""
_COMMAND = """\
```bash
pip install 'e3va[hub]'
{command}
```
"""
_PYTHON = """
```python
{code}
```
"""
_TORCHVISION = """\
from e3va.torchvision import load_adapters

models = load_adapters({{"{name}": "{address}"}})
found = models.predict_all([image])  # image: a tensor [3, H, W], RGB, from 0 to 1"""
_DETECTRON2 = """\
from e3va.detectron2 import LazyPredictor

predictor = LazyPredictor(weights="{address}")
instances = predictor(image)  # image: an array [H, W, 3] of uint8, BGR"""
_CODE = {"torchvision": _TORCHVISION, "detectron2": _DETECTRON2}


def model_card(config: AdapterConfig, repo: str, license: str) -> str:
    """Return the text of the card.

    Args:
        config: description of the adapter; its trunk's source is an address.
        repo: ``USER/NAME``.
        license: the hub's name of the licence.
    """
    name, address = repo.partition("/")[2], HUB + repo
    kind = str(config.model.get("config") or config.model.get("model") or "")
    metadata = _metadata(config, kind, license)
    facts = {
        "model": kind or "none, only the highway",
        "framework": config.framework or "none",
        "classes": ", ".join(config.classes) or "unknown",
        "trained on": config.trained_on or "unknown",
        "steps": "unknown" if config.steps is None else config.steps,
        "trunk": f"`{config.trunk.source}`",
        "fingerprint of the trunk": f"`{config.trunk.fingerprint}`",
        "licence": license,
    }
    scores = [f"| {_cell(key)} | {value:.4g} |" for key, value in config.scores.items()]
    code = _CODE.get(config.framework, "")
    command = f"e3va predict {address} --input photo.jpg"
    if config.framework != "torchvision":
        command = f"e3va info {address}"
    text = _CARD.format(
        metadata="\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items()),
        name=name,
        preset=preset_name(config.backbone.preset) or config.backbone.preset,
        what=_cell(kind) or "a highway for any model",
        facts="\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items()),
        scores=_TABLE.format(rows="\n".join(scores)) if scores else "",
        use=_COMMAND.format(command=command)
        + (_PYTHON.format(code=code.format(name=name, address=address)) if code else ""),
    )
    return text.rstrip() + "\n"


def _metadata(config: AdapterConfig, kind: str, license: str) -> dict[str, Any]:
    tags = ["e3va", "swin", "adapter", *([config.framework] if config.framework else [])]
    data: dict[str, Any] = {"license": license, "library_name": "e3va", "tags": tags}
    if kind:
        segments = "mask" in kind or "semantic" in kind
        data["pipeline_tag"] = "image-segmentation" if segments else "object-detection"
    if config.trunk.source.startswith(HUB):
        data["base_model"] = parse_hub_address(config.trunk.source).repo
    return data


def _cell(value: Any) -> str:
    """Return a text for a cell of a table: one line without a separator."""
    return " ".join(str(value).split()).replace("|", "\\|")
