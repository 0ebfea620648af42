"""Data sets in COCO format for Detectron2: dataset dicts, mapper and evaluator."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..data.coco import ReadOptions
from ..data.formats import read_annotations, read_class_names
from ..utils.errors import UserError, brief, unreadable_image
from .masks import MaskMapper

logger = logging.getLogger(__name__)


def class_names(json_file: str) -> list[str]:
    """Return the class names of an annotation file, in the order of the category ids."""
    file = given_path(json_file, "data.train.json")
    return read_class_names(file)


def count_classes(json_file: str) -> int:
    """Return the number of classes of an annotation file, for ``model.roi_heads.num_classes``."""
    return len(class_names(json_file))


def coco_dicts(
    json_file: str, image_root: str, *, training: bool, masks: bool = True
) -> list[dict]:
    """Return dataset dicts in Detectron2's format, for training without images without objects.

    With ``masks``, every annotation must have a ``segmentation``.

    Raises:
        UserError: a path is not given, or :func:`e3va.data.coco.read_coco` finds a mistake.
    """
    key = "data.train" if training else "data.val"
    json_file = given_path(json_file, f"{key}.json")
    image_root = given_path(image_root, f"{key}.images")
    data = read_annotations(json_file, image_root, ReadOptions(masks, training))
    logger.info(data.summary())
    return [
        {
            "file_name": image["path"],
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [_instance(a, data.class_index) for a in data.annotations[image["id"]]],
        }
        for image in data.images
    ]


def registered_dicts(names: str | Sequence[str], filter_empty: bool = True) -> list[dict]:
    """Return the dataset dicts of one or several data sets in Detectron2's catalog.

    ``names`` are such as ``coco_2017_train``; ``filter_empty`` leaves out images without objects.

    Raises:
        UserError: an annotation file does not exist.
    """
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except FileNotFoundError as error:
        named = names if isinstance(names, str) else " + ".join(names)
        raise UserError(
            f"data set {named}: no annotation file {error.filename}; set the environment variable "
            "DETECTRON2_DATASETS to the folder that holds it, in the layout of Detectron2's "
            "datasets page"
        ) from None


def coco_evaluator(
    json_file: str, image_root: str, *, output_dir: str, masks: bool = True
) -> COCOEvaluator:
    """Build an evaluator of COCO's AP; write what counts into ``output_dir/ground_truth.json``."""
    data = read_annotations(json_file, image_root, ReadOptions(masks))
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


def given_path(path: str, key: str, kind: str = "PATH") -> str:
    """Return the path in a config's ``key``, with ``~`` expanded; it must not be empty."""
    if not path:
        raise UserError(f"{key} is not given: add {key}={kind} to the command line")
    return os.path.expanduser(path)


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


class ImageMapper(MaskMapper):
    """:class:`MaskMapper` with one-line errors.

    Raises:
        UserError: the image is missing, does not decode, or has another size than its annotation
            file states.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """Map a dataset dict to an example, see :class:`detectron2.data.DatasetMapper`."""
        path = dataset_dict["file_name"]
        try:
            return super().__call__(dataset_dict)
        except SizeMismatchError as error:
            raise UserError(
                f"image {path} has another size than its annotation file states ({brief(error)}): "
                "correct height and width in the file"
            ) from None
        except (OSError, SyntaxError) as error:  # Pillow raises both for broken files
            raise unreadable_image(path, error) from None
