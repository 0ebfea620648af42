"""ADE20K with its 150 classes, in the public layout of the MIT scene parsing challenge.

Label 0 is ignored, and 1 to 150 are the classes. Without the folder ``annotations``, the shifted
labels are read that Detectron2's ``prepare_ade20k_sem_seg.py`` writes.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from ..data.label_maps import IGNORED, pair_label_maps
from ..data.locations import ADE20K, ADE20K_PUBLIC, VARIABLE
from ..utils.errors import UserError
from .labels import dicts_of_pairs

# Folders of label maps, with the label of class 0 in them.
_PUBLIC, _SHIFTED = ("annotations", 1), ("annotations_detectron2", 0)


def _dicts(split: str) -> list[dict[str, Any]]:
    """Return the dataset dicts of a split, with ``first_label``, see ``labels.py``."""
    root = Path(os.getenv(VARIABLE, "datasets")).expanduser() / ADE20K
    images = root / "images" / split
    found = [(root / name / split, first) for name, first in (_PUBLIC, _SHIFTED)]
    labels, first = next((f for f in found if f[0].is_dir()), found[0])
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(
                f"ADE20K: no folder {folder}; set the environment variable DETECTRON2_DATASETS to "
                "the folder that holds ADEChallengeData2016 with images/ and annotations/, in the "
                "layout of the scene parsing challenge's archive"
            )
    return dicts_of_pairs(pair_label_maps(images, labels), first_label=first)


for _name, _split in ADE20K_PUBLIC.items():
    if _name not in DatasetCatalog:
        DatasetCatalog.register(_name, partial(_dicts, _split))
        MetadataCatalog.get(_name).set(
            stuff_classes=ADE20K_SEM_SEG_CATEGORIES[:],
            ignore_label=IGNORED,
            evaluator_type="sem_seg",
        )
