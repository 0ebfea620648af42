"""What to do after a check: the commands that train on the data."""

import re
import shlex
from collections.abc import Sequence

from .check import Instances
from .labels import LabelMaps
from .places import ADE20K_SPLITS, COCO, VOC, Place

SCRIPT = "python projects/E3VA/lazyconfig_train_net.py --config-file"
TRUNK = "e3va://swin_tiny_patch4_window7_224"
# Texts that an override's value means as they stand; all else is quoted as a Python literal.
_PLAIN = re.compile(r"[A-Za-z_./~][\w./~+-]*[/.][\w./~+-]*|[A-Za-z_][\w-]{3,}")
_WORDS = {"true", "false", "null", "none", "nan", "inf"}


def next_steps(found: Instances | LabelMaps, place: Place) -> str:
    """Lines for people, with commands that a shell takes as they are."""
    commands = _labels(found, place) if isinstance(found, LabelMaps) else _instances(found, place)
    return "\n".join(["Next", *(f"  {command}" for command in commands)])


def _instances(found: Instances, place: Place) -> list[str]:
    if place.name in VOC:
        return [_detectron2("VOC/retinanet_e3va_swin_t.py")]
    if place.name in COCO:
        return [_detectron2("COCO/cascade_mask_rcnn_e3va_swin_t_1x.py")]
    if place.kind == "voc" and not place.coco:
        return ["--output FOLDER writes the boxes in COCO format, which can be trained on"]
    source = str(place.coco or found.source)
    data = [override("data.train.json", source), override("data.train.images", found.root)]
    if not found.masks:
        return [_detectron2("custom/retinanet_e3va_swin_t.py", data)]
    own = ["e3va train", "--images", shlex.quote(found.root), "--annotations", shlex.quote(source)]
    return [" ".join(own), _detectron2("custom/cascade_mask_rcnn_e3va_swin_t.py", data)]


def _labels(found: LabelMaps, place: Place) -> list[str]:
    if found.root is None:
        return ["check them with their images: add --images FOLDER"]
    if place.name in ADE20K_SPLITS:
        return [_detectron2("ADE20K/semantic_fpn_e3va_swin_t_160k.py")]
    own = ["e3va train", "--images", shlex.quote(found.root), "--labels", shlex.quote(found.source)]
    data = [override("data.train.images", found.root), override("data.train.labels", found.source)]
    if found.named:
        own += ["--classes", shlex.quote(",".join(found.names))]
        plain = all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in found.names)
        value = f"[{','.join(found.names)}]" if plain else repr(found.names)
        data.append(shlex.quote(f"data.classes={value}"))
    return [" ".join(own), _detectron2("custom/semantic_fpn_e3va_swin_t.py", data)]


def override(key: str, value: str) -> str:
    """``key=value`` of a config, quoted for the shell, that means the text ``value``."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return shlex.quote(f"{key}={value if plain else repr(value)}")


def _detectron2(config: str, overrides: Sequence[str] = ()) -> str:
    return " ".join([SCRIPT, config, *overrides, f"train.init_checkpoint={TRUNK}"])
