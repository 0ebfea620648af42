# Your own data in COCO format, given on the command line:
#   data.train.json=… data.train.images=… data.val.json=… data.val.images=…
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from omegaconf import OmegaConf

from e3va.detectron2.data import ImageMapper, coco_dicts, coco_evaluator
from e3va.detectron2.loader import TrainLoader
from e3va.detectron2.transforms import ResizeShortestEdge

data = dict(
    # short_edge: the shorter side in pixels, chosen at random from this list.
    train=dict(json="", images="", short_edge=list(range(480, 801, 32))),
    # Without validation data, there is no evaluation.
    val=dict(json="", images="", short_edge=800),
    max_size=1333,
    # Class names; the training script fills them in from the training annotations.
    classes=None,
)

dataloader = OmegaConf.create()

dataloader.train = L(TrainLoader)(
    dataset=L(coco_dicts)(
        json_file="${data.train.json}", image_root="${data.train.images}", training=True
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
        json_file="${data.val.json}", image_root="${data.val.images}", training=False
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
)
