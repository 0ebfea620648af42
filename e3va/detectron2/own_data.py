"""A user's own data in a config, the keys of ``data``: classes, validation data, and the split."""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from detectron2.config import instantiate
from omegaconf import DictConfig

from ..data.coco import nothing_to_score
from ..data.formats import own_validation
from ..data.images import check_headers
from ..data.split import image_names
from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from .data import DataOptions, class_names, read_data
from .describe import set_classes
from .labels import label_classes, label_dicts

logger = logging.getLogger(__name__)
SPLIT_FILE = "split.json"
_PLACES = ("json", "images", "labels")


def resolve_validation(cfg: DictConfig) -> None:
    """Write the training data as validation data into a config, if a part of them validates.

    That part is a share (``data.val_split``), or what a ``data.yaml`` names as validation data.

    Raises:
        UserError: there are both a share and validation data.
    """
    train, val, share = cfg.data.train, cfg.data.val, cfg.data.get("val_split", 0)
    given = {key: val[key] for key in _PLACES if val.get(key)}
    named = bool(train.get("json")) and own_validation(os.path.expanduser(train.json))
    if share:
        # A saved config has the training data in both places.
        others = [f"data.val.{key}={given[key]}" for key in given if given[key] != train.get(key)]
        if named:
            others.append(f"the validation data that {train.json} names")
        if others:
            raise UserError(
                f"data.val_split={share} and {', '.join(others)}: expected one of the two, a share "
                "of the training data or validation data of their own; leave one out"
            )
    elif given or not named:
        return
    for key in _PLACES:
        if key in train:
            val[key] = train[key]


def resolve_classes(cfg: DictConfig) -> None:
    """Write the names of the classes in the training data, and their number, into a config."""
    train, classes = cfg.data.train, cfg.data.classes
    if "labels" in train:
        skip_missing = cfg.data.get("skip_missing", False)
        classes = label_classes(train.images, train.labels, classes, skip_missing)
    elif classes is None:
        classes = class_names(train.json, train.images)
    set_classes(cfg, classes)


def has_validation_data(data: DictConfig) -> bool:
    """Return whether the config names any validation data."""
    return any(data.val.get(key) for key in _PLACES)


def check_data(cfg: DictConfig, training: bool) -> dict[str, str]:
    """Check the training or the validation data, which must have the classes of the model.

    The headers of the images are read too. Of the processes that torchrun starts on a machine, only
    the first one reads them.

    Returns:
        The path of each image by its name.
    """
    places = cfg.data.train if training else cfg.data.val
    dataset = (cfg.dataloader.train if training else cfg.dataloader.test).dataset
    # A config that an earlier version saved has no options.
    options = instantiate(dataset.get("options")) or DataOptions(classes=cfg.data.classes)
    if "labels" in places:
        settings = {"training": training, "classes": cfg.data.classes, "options": options}
        records = label_dicts(places.images, places.labels, **settings)
        return {Path(record["file_name"]).name: record["file_name"] for record in records}
    settings = {"training": training, "masks": dataset.get("masks", True), "options": options}
    data = read_data(places.json, places.images, **settings)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        check_headers(data.images)
        if line := not training and nothing_to_score(data):
            logger.warning(line)
    paths = [image["path"] for image in data.images]
    return dict(zip(image_names(data), paths, strict=True))


def store_split(cfg: DictConfig, names: Iterable[str], same: bool) -> None:
    """Write the names of the images that validate into ``split.json`` in the output folder.

    With ``same``, the run goes on with the split of an earlier one.

    Raises:
        UserError: with ``same``, the earlier split was another one.
    """
    path = Path(cfg.train.output_dir) / SPLIT_FILE
    names, seed = sorted(set(names)), cfg.train.get("seed", 0)
    if same and path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))["validation"]
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(f"{path} cannot be read: restore the file, or delete it") from None
        if stored != names:
            raise UserError(
                f"data.val_split={cfg.data.val_split} with train.seed={seed} selects "
                f"other images than those in {path}: expected the data, the share and the seed of "
                "the earlier run; or start a new run in another train.output_dir"
            )
        return
    facts = {"val_split": cfg.data.val_split, "seed": seed, "validation": names}
    with atomic_open(path, "w") as file:
        json.dump(facts, file, indent=1)
