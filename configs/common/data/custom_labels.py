# Images with label maps of your own, given on the command line (for a.jpg there is a.png):
#   data.train.images=… data.train.labels=… data.val.images=… data.val.labels=…
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from omegaconf import OmegaConf

from e3va.detectron2.labels import LabelMapper, label_classes, label_dicts, label_evaluator
from e3va.detectron2.loader import TrainLoader

data = dict(
    # The shorter side is drawn from this range; then a crop of this height and width is taken.
    train=dict(images="", labels="", short_edge=[256, 1024], crop=[512, 512]),
    # Without validation data, nothing is evaluated.
    val=dict(images="", labels="", short_edge=512),
    max_size=2048,
    # Of a crop, the most that one class may fill (it is looked for ten times).
    class_area=0.75,
    # Names, that of label 0 first: [background,date,…]. None: "class 0" … up to the largest label
    # of the training maps. The training script writes them here.
    classes=None,
)

_classes = L(label_classes)(
    images="${data.train.images}", labels="${data.train.labels}", classes="${data.classes}"
)

dataloader = OmegaConf.create()

dataloader.train = L(TrainLoader)(
    dataset=L(label_dicts)(
        images="${data.train.images}",
        labels="${data.train.labels}",
        training=True,
        classes=_classes,
    ),
    mapper=L(LabelMapper)(
        is_train=True,
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length="${data.train.short_edge}",
                sample_style="range",
                max_size=4096,
            ),
            L(T.RandomCrop_CategoryAreaConstraint)(
                crop_type="absolute",
                crop_size="${data.train.crop}",
                single_category_max_area="${data.class_area}",
                ignored_category=255,
            ),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="RGB",
    ),
    total_batch_size=2,
    num_workers=2,
    seed="${train.seed}",
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(label_dicts)(
        images="${data.val.images}", labels="${data.val.labels}", training=False, classes=_classes
    ),
    mapper=L(LabelMapper)(
        is_train=False,
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length="${data.val.short_edge}", max_size="${data.max_size}"
            )
        ],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=2,
)

dataloader.evaluator = L(label_evaluator)(
    images="${data.val.images}",
    labels="${data.val.labels}",
    classes=_classes,
    output_dir="${train.output_dir}/inference",
)
