"""ADE20K's 150 classes as the MIT scene parsing challenge published them.

``ade_challenge_2016_train`` and ``ade_challenge_2016_val`` are ``ADEChallengeData2016/`` in the
folder that the environment variable ``DETECTRON2_DATASETS`` names (default: ``datasets``)::

    images/{training,validation}/*.jpg
    annotations/{training,validation}/*.png    # 0: other, ignored here; 1 to 150: the classes

Detectron2's own ``ade20k_sem_seg_train`` and ``…_val`` are the same pictures with labels that its
``prepare_ade20k_sem_seg.py`` has shifted by one; where these alone are there, they are taken.
"""

import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from ..data.label_maps import IGNORED, pair_label_maps
from ..utils.errors import UserError

SPLITS = {"ade_challenge_2016_train": "training", "ade_challenge_2016_val": "validation"}
# Folders of label maps, with the label that class 0 has there.
_PUBLIC, _SHIFTED = ("annotations", 1), ("annotations_detectron2", 0)


def ade20k_dicts(root: str | os.PathLike, split: str) -> list[dict[str, Any]]:
    """Dataset dicts with ``first_label``, see :mod:`e3va.detectron2.labels`.

    Args:
        root: the folder ``ADEChallengeData2016``.
        split: ``"training"`` or ``"validation"``.

    Raises:
        UserError: a folder, a label map or all images are missing; see
            :func:`e3va.data.label_maps.pair_label_maps`.
    """
    root = Path(root)
    images = root / "images" / split
    found = [(root / name / split, first) for name, first in (_PUBLIC, _SHIFTED)]
    labels, first = next((f for f in found if f[0].is_dir()), found[0])
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(
                f"ADE20K: no folder {folder}; set the environment variable DETECTRON2_DATASETS to "
                "the folder that holds ADEChallengeData2016 with images/ and annotations/, as "
                "the scene parsing challenge's archive is laid out"
            )
    return [
        {
            "file_name": str(pair.image),
            "sem_seg_file_name": str(pair.labels),
            "height": pair.height,
            "width": pair.width,
            "first_label": first,
        }
        for pair in pair_label_maps(images, labels)
    ]


def _folder() -> Path:
    root = Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()
    return root / "ADEChallengeData2016"


def register_ade20k() -> None:
    """Make the two data sets known to Detectron2; again changes nothing."""
    for name, split in SPLITS.items():
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, lambda split=split: ade20k_dicts(_folder(), split))
            MetadataCatalog.get(name).set(
                stuff_classes=ADE20K_SEM_SEG_CATEGORIES[:],
                ignore_label=IGNORED,
                evaluator_type="sem_seg",
            )


register_ade20k()
