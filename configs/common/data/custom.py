# Your own data, given on the command line:
#   data.train.json=… data.train.images=… data.val.json=… data.val.images=…
# json is a COCO-format file, a data.yaml of YOLO, or a folder of Pascal VOC or labelme; for all but
# the COCO-format file, images may be left out.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from omegaconf import OmegaConf

from e3va.detectron2.data import DataOptions, ImageMapper, coco_dicts, coco_evaluator
from e3va.detectron2.loader import TrainLoader
from e3va.detectron2.transforms import ResizeShortestEdge

data = dict(
    # short_edge: the shorter side in pixels, chosen at random from this list.
    train=dict(json="", images="", short_edge=list(range(480, 801, 32))),
    # Without validation data, there is no evaluation.
    val=dict(json="", images="", short_edge=800),
    # Share of the training images to validate on, chosen at random with train.seed, if there are no
    # validation data: 0.1 for a tenth of them.
    val_split=0.0,
    max_size=1333,
    # Largest number of objects that the model finds in an image, and that an evaluation scores.
    max_detections=100,
    # Whether to leave out images that do not exist; otherwise they are an error.
    skip_missing=False,
    # Whether objects with iscrowd=1 count as ordinary objects.
    use_crowds=False,
    # Whether to train on images without objects too.
    keep_empty=False,
    # Class names; the training script fills them in from the training annotations.
    classes=None,
)

_options = L(DataOptions)(
    skip_missing="${data.skip_missing}",
    use_crowds="${data.use_crowds}",
    keep_empty="${data.keep_empty}",
    max_detections="${data.max_detections}",
    val_split="${data.val_split}",
    seed="${oc.select:train.seed,0}",
    classes="${data.classes}",
)

dataloader = OmegaConf.create()

dataloader.train = L(TrainLoader)(
    dataset=L(coco_dicts)(
        json_file="${data.train.json}",
        image_root="${data.train.images}",
        training=True,
        options=_options,
    ),
    mapper=L(ImageMapper)(
        is_train=True,
        augmentations=[
            L(ResizeShortestEdge)(
                short_edge_length="${data.train.short_edge}",
                sample_style="choice",
                max_size="${data.max_size}",
            ),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="RGB",
        use_instance_mask=True,
    ),
    total_batch_size=2,
    num_workers=2,
    seed="${train.seed}",
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(coco_dicts)(
        json_file="${data.val.json}",
        image_root="${data.val.images}",
        training=False,
        options=_options,
    ),
    mapper=L(ImageMapper)(
        is_train=False,
        augmentations=[
            L(ResizeShortestEdge)(
                short_edge_length="${data.val.short_edge}", max_size="${data.max_size}"
            )
        ],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=2,
)

dataloader.evaluator = L(coco_evaluator)(
    json_file="${data.val.json}",
    image_root="${data.val.images}",
    output_dir="${train.output_dir}/inference",
    options=_options,
)
