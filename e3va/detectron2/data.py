"""COCO-format data of a user's own for Detectron2: dataset dicts, mapper, evaluator."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..data.coco import CocoData, read_categories, read_coco
from ..utils.errors import UserError

logger = logging.getLogger(__name__)


def class_names(json_file: str) -> list[str]:
    """Class names of an annotation file, by class index (categories in the order of their ids)."""
    return [category["name"] for category in read_categories(_given(json_file, "data.train.json"))]


def count_classes(json_file: str) -> int:
    """Number of classes of an annotation file, for ``model.roi_heads.num_classes``."""
    return len(class_names(json_file))


def coco_dicts(
    json_file: str, image_root: str, *, training: bool, masks: bool = True
) -> list[dict]:
    """Dataset dicts in Detectron2's format.

    Args:
        json_file, image_root, training, masks: see :func:`e3va.data.coco.read_coco`.

    Raises:
        UserError: as :func:`e3va.data.coco.read_coco`, or if a path was not given.
    """
    key = "data.train" if training else "data.val"
    data = read_coco(
        _given(json_file, f"{key}.json"),
        _given(image_root, f"{key}.images"),
        masks=masks,
        training=training,
    )
    logger.info(data.summary())
    return [_dataset_dict(image, data) for image in data.images]


def registered_dicts(names: str | Sequence[str], filter_empty: bool = True) -> list[dict]:
    """Dataset dicts of a data set that Detectron2 knows by name, such as ``coco_2017_train``, or of
    several together.

    Raises:
        UserError: its annotation file is not there.
    """
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except FileNotFoundError as error:
        named = names if isinstance(names, str) else " + ".join(names)
        raise UserError(
            f"data set {named}: no annotation file {error.filename}; set the environment variable "
            "DETECTRON2_DATASETS to the folder that holds it, laid out as Detectron2's datasets "
            "page says"
        ) from None


def coco_evaluator(
    json_file: str, image_root: str, *, output_dir: str, masks: bool = True
) -> COCOEvaluator:
    """COCO's box and mask AP by pycocotools, on the usable part of an annotation file.

    Writes ``output_dir/ground_truth.json`` (what is evaluated against) and, when it evaluates,
    ``coco_instances_results.json``.
    """
    data = read_coco(json_file, image_root, masks=masks)
    truth = Path(output_dir) / "ground_truth.json"
    if comm.is_main_process():
        truth.parent.mkdir(parents=True, exist_ok=True)
        data.write(truth)
    comm.synchronize()
    name = f"e3va:{truth.resolve()}"
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(
        json_file=str(truth),
        thing_classes=data.class_names,
        thing_dataset_id_to_contiguous_id=data.class_index,
    )
    tasks = ("bbox", "segm") if masks else ("bbox",)
    return COCOEvaluator(name, tasks=tasks, output_dir=str(output_dir), use_fast_impl=False)


def _given(path: str, key: str) -> str:
    if not path:
        raise UserError(f"{key} is not given: add {key}=PATH to the command line")
    return os.path.expanduser(path)


def _dataset_dict(image: dict, data: CocoData) -> dict:
    return {
        "file_name": image["path"],
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "annotations": [
            _instance(annotation, data.class_index) for annotation in data.annotations[image["id"]]
        ],
    }


def _instance(annotation: dict, class_index: dict[int, int]) -> dict:
    instance = {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": class_index[annotation["category_id"]],
        "iscrowd": annotation["iscrowd"],
    }
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
    if segmentation:
        instance["segmentation"] = segmentation
    return instance


class ImageMapper(DatasetMapper):
    """Detectron2's mapper, with one clear line for an image that cannot be used.

    The mask format follows the data: polygons stay polygons, and an image with an RLE among its
    annotations gets bitmasks.

    Raises:
        UserError: the image is missing, does not decode, or is not of the size that the annotation
            file states.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        path = dataset_dict["file_name"]
        try:
            return super().__call__(dataset_dict)
        except SizeMismatchError as error:
            raise UserError(
                f"image {path} is not of the size that its annotation file states "
                f"({' '.join(str(error).split())}): correct the file's height and width"
            ) from None
        except (OSError, SyntaxError) as error:  # Pillow raises both for broken files
            reason = "it is not there" if isinstance(error, FileNotFoundError) else _brief(error)
            raise UserError(
                f"image {path} cannot be read: {reason}; expected an image file that Pillow "
                "decodes; replace it or take it out of the annotations"
            ) from None

    def _transform_annotations(self, dataset_dict: dict, transforms: Any, image_shape) -> None:
        kinds = {type(a.get("segmentation")) for a in dataset_dict["annotations"]}
        self.instance_mask_format = "bitmask" if kinds & {dict, np.ndarray} else "polygon"
        super()._transform_annotations(dataset_dict, transforms, image_shape)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
