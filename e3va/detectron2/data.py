"""A user's own annotations of instances for Detectron2: dataset dicts, mapper and evaluator."""

import copy
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import detectron2.data.transforms as T
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data import detection_utils as utils
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n

from ..data.coco import CocoData, ReadOptions, objects_of_crowded
from ..data.formats import read_annotations, read_class_names
from ..data.split import split_coco
from ..utils.errors import UserError
from .evaluator import InstanceEvaluator
from .images import read_array
from .masks import MaskMapper

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataOptions:
    """The options of a user's own data: keys of ``data`` in a config.

    Attributes:
        skip_missing: whether to leave out images that do not exist, instead of refusing them.
        use_crowds: whether objects with ``iscrowd`` 1 count as ordinary objects.
        keep_empty: whether training keeps images without objects.
        max_detections: largest number of objects that the model finds in an image.
        val_split: share of the training images to validate on; 0 for validation data of their own.
        seed: seed of that split.
        classes: class names of the model; None or () if it has none yet.
    """

    skip_missing: bool = False
    use_crowds: bool = False
    keep_empty: bool = False
    max_detections: int = 100
    val_split: float = 0.0
    seed: int = 0
    classes: Sequence[str] | None = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(str, self.classes or ())))

    def reading(self, masks: bool, training: bool) -> ReadOptions:
        """Return the options of :func:`e3va.data.formats.read_annotations`."""
        switches = (self.keep_empty, self.skip_missing, self.use_crowds)
        return ReadOptions(masks, training, *switches, self.classes)


DEFAULT_OPTIONS = DataOptions()


def class_names(json_file: str, image_root: str = "") -> list[str]:
    """Return the class names of annotations, in the order of the category ids."""
    file = given_path(json_file, "data.train.json")
    return read_class_names(file, image_root or None)


def count_classes(json_file: str, image_root: str = "") -> int:
    """Return the number of classes of annotations, for ``model.roi_heads.num_classes``."""
    return len(class_names(json_file, image_root))


def count_candidates(max_detections: int) -> int:
    """Return the number of candidate boxes from which a model selects its detections."""
    return max(1000, max_detections)


def read_data(
    json_file: str,
    image_root: str,
    *,
    training: bool,
    masks: bool = True,
    options: DataOptions | None = None,
) -> CocoData:
    """Read and check training or validation data, see :func:`coco_dicts`."""
    options = options or DEFAULT_OPTIONS
    key = "data.train" if training else "data.val"
    json_file = given_path(json_file, f"{key}.json")
    if image_root or json_file.lower().endswith(".json"):  # other formats name their images
        image_root = given_path(image_root, f"{key}.images")
    reading = options.reading(masks, training)
    if options.val_split:
        whole = read_annotations(json_file, image_root or None, replace(reading, training=False))
        train, val = split_coco(whole, options.val_split, options.seed, reading)
        data = train if training else val
    else:
        split = "train" if training else "val"
        data = read_annotations(json_file, image_root or None, reading, split)
    if options.classes and options.classes != tuple(data.class_names):
        raise UserError(
            f"{json_file} has the classes {', '.join(data.class_names)}, but the model learns "
            f"{', '.join(options.classes)}: expected the same names in the same order of ids"
        )
    return data


def coco_dicts(
    json_file: str,
    image_root: str,
    *,
    training: bool,
    masks: bool = True,
    options: DataOptions | None = None,
) -> list[dict]:
    """Return dataset dicts in Detectron2's format.

    Args:
        json_file: path of the annotations, see :func:`e3va.data.formats.read_annotations`.
        image_root: folder of the images; "" where the annotations name it.
        training: whether the data are for training, which leaves out images without objects.
        masks: whether every object needs a ``segmentation``.
        options: options of the data. With a ``val_split``, the result is one part of the data.

    Raises:
        UserError: a path is not given, the classes are not those of ``options``, or
            :func:`e3va.data.formats.read_annotations` finds a mistake.
    """
    options = options or DEFAULT_OPTIONS
    data = read_data(json_file, image_root, training=training, masks=masks, options=options)
    logger.info(data.summary())
    _warn_of_many_objects(data, options.max_detections)
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


def _warn_of_many_objects(data: CocoData, most: int) -> None:
    crowded = objects_of_crowded(data, most)
    if crowded:
        log_first_n(
            logging.WARNING,
            f"{data.source}: {len(crowded)} of {len(data.images)} images have more than {most} "
            f"objects, up to {max(crowded)}, but the model finds at most {most} in an image: add "
            f"data.max_detections={max(crowded)} to find more",
            name=__name__,
            key="message",
        )


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
    json_file: str,
    image_root: str,
    *,
    output_dir: str,
    masks: bool = True,
    options: DataOptions | None = None,
) -> InstanceEvaluator:
    """Build an evaluator of COCO's AP; write what counts into ``output_dir/ground_truth.json``.

    It scores ``options.max_detections`` objects in an image; see :func:`coco_dicts` for the other
    arguments.
    """
    options = options or DEFAULT_OPTIONS
    data = read_data(json_file, image_root, training=False, masks=masks, options=options)
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
    return InstanceEvaluator(
        name,
        tasks=("bbox", "segm") if masks else ("bbox",),
        output_dir=str(output_dir),
        max_dets_per_image=options.max_detections,
        use_fast_impl=False,
    )


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
        UserError: the image cannot be used, see :func:`e3va.data.images.read_image`.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """Map a dataset dict to an example, see :class:`detectron2.data.DatasetMapper`."""
        record = copy.deepcopy(dataset_dict)
        image = read_array(record, self.image_format)
        utils.check_image_size(record, image)  # fills in a missing height and width
        labels = record.pop("sem_seg_file_name", None)
        if labels is not None:
            labels = utils.read_image(labels, "L").squeeze(2)
        entry = T.AugInput(image, sem_seg=labels)
        transforms = self.augmentations(entry)
        record["image"] = torch.from_numpy(entry.image.transpose(2, 0, 1).copy())
        if labels is not None:
            record["sem_seg"] = torch.from_numpy(entry.sem_seg.astype("long"))
        shape = entry.image.shape[:2]
        if self.proposal_topk is not None:
            utils.transform_proposals(record, shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, shape)
        return record
