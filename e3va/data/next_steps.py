"""Commands that train on checked data."""

import re
import shlex
from collections.abc import Sequence

from .check_instances import InstanceFindings
from .check_label_maps import LabelMapFindings
from .locations import ADE20K_SPLITS, COCO, VOC
from .problems import Findings

SCRIPT = "python projects/E3VA/lazyconfig_train_net.py --config-file"
TRUNK = "e3va://swin_tiny_patch4_window7_224"
_START = ("--trunk", TRUNK)
# Values that a config reads as the same text; other texts are written as Python literals.
_PLAIN = re.compile(r"[A-Za-z_./~][\w./~+-]*[/.][\w./~+-]*|[A-Za-z_][\w-]{3,}")
_WORDS = {"true", "false", "null", "none", "nan", "inf"}


def next_steps(found: Findings, reading: Sequence[str] = ()) -> str:
    """Return lines for people, with commands that are quoted for a shell.

    ``reading`` are options for reading the data that both frameworks have, such as
    ``skip_missing``.
    """
    train, *others = (_labels if isinstance(found, LabelMapFindings) else _instances)(found)
    flags = "".join(f" --{name.replace('_', '-')}" for name in reading)
    keys = "".join(f" data.{name}=true" for name in reading)
    # Public data sets have only the command of Detectron2, and label maps may have none.
    commands = [train + flags * train.startswith("e3va "), *(line + keys for line in others)]
    return "\n".join(["Next", *(f"  {command}" for command in commands)])


def _instances(found: InstanceFindings) -> list[str]:
    name = found.location.name
    if name in VOC:
        return [_detectron2("VOC/retinanet_e3va_swin_t.py")]
    if name in COCO:
        return [_detectron2("COCO/cascade_mask_rcnn_e3va_swin_t_1x.py")]
    train = ["e3va", "train", "--annotations", found.source, *_START]
    data = [override("data.train.json", found.source)]
    if found.location.kind != "yolo":  # a data.yaml names its images
        train[2:2] = ["--images", found.root]
        data.append(override("data.train.images", found.root))
    model = "cascade_mask_rcnn" if found.masks else "retinanet"
    return [shlex.join(train), _detectron2(f"custom/{model}_e3va_swin_t.py", data)]


def _labels(found: LabelMapFindings) -> list[str]:
    if found.root is None:
        return ["check the label maps with their images: add --images FOLDER"]
    if found.location.name in ADE20K_SPLITS:
        return [_detectron2("ADE20K/semantic_fpn_e3va_swin_t_160k.py")]
    train = ["e3va", "train", "--images", found.root, "--labels", found.source, *_START]
    data = [override("data.train.images", found.root), override("data.train.labels", found.source)]
    if found.named:
        train += ["--classes", ",".join(found.names)]
        plain = all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in found.names)
        value = f"[{','.join(found.names)}]" if plain else repr(found.names)
        data.append(shlex.quote(f"data.classes={value}"))
    return [shlex.join(train), _detectron2("custom/semantic_fpn_e3va_swin_t.py", data)]


def override(key: str, value: str) -> str:
    """Return ``key=value`` for a config, quoted for a shell, so that the value is this text."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return shlex.quote(f"{key}={value if plain else repr(value)}")


def _detectron2(config: str, overrides: Sequence[str] = ()) -> str:
    return " ".join([SCRIPT, config, *overrides, f"train.init_checkpoint={TRUNK}"])
