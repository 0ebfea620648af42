# Your own images with label maps, given on the command line (a.jpg has the label map a.png):
#   data.train.images=… data.train.labels=… data.val.images=… data.val.labels=…
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from omegaconf import OmegaConf

from e3va.detectron2.data import DataOptions
from e3va.detectron2.labels import LabelMapper, label_classes, label_dicts, label_evaluator
from e3va.detectron2.loader import TrainLoader
from e3va.detectron2.transforms import ResizeShortestEdge

data = dict(
    # short_edge: the shorter side in pixels, chosen at random from this list (here every number
    # from 256 to 1024, as for ADE20K). crop: height and width of the crop that follows.
    train=dict(images="", labels="", short_edge=list(range(256, 1025)), crop=[512, 512]),
    # Without validation data, there is no evaluation.
    val=dict(images="", labels="", short_edge=512),
    # Share of the training images to validate on, chosen at random with train.seed, if there are no
    # validation data: 0.1 for a tenth of them.
    val_split=0.0,
    # Whether to leave out images without a label map; otherwise they are an error.
    skip_missing=False,
    max_size=2048,
    # The largest share of a crop that one class may fill; after ten tries any crop is used.
    class_area=0.75,
    # Class names; the first one is the name of label 0: [background,date,…]. With None the training
    # script fills in "class 0", "class 1", … up to the largest label of the training maps.
    classes=None,
)

_classes = L(label_classes)(
    images="${data.train.images}",
    labels="${data.train.labels}",
    classes="${data.classes}",
    skip_missing="${data.skip_missing}",
)
_options = L(DataOptions)(
    skip_missing="${data.skip_missing}",
    val_split="${data.val_split}",
    seed="${oc.select:train.seed,0}",
)

dataloader = OmegaConf.create()

dataloader.train = L(TrainLoader)(
    dataset=L(label_dicts)(
        images="${data.train.images}",
        labels="${data.train.labels}",
        training=True,
        classes=_classes,
        options=_options,
    ),
    mapper=L(LabelMapper)(
        is_train=True,
        augmentations=[
            L(ResizeShortestEdge)(
                short_edge_length="${data.train.short_edge}",
                sample_style="choice",
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
        images="${data.val.images}",
        labels="${data.val.labels}",
        training=False,
        classes=_classes,
        options=_options,
    ),
    mapper=L(LabelMapper)(
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

dataloader.evaluator = L(label_evaluator)(
    images="${data.val.images}",
    labels="${data.val.labels}",
    classes=_classes,
    output_dir="${train.output_dir}/inference",
    options=_options,
)
