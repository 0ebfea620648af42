import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator
from omegaconf import OmegaConf

from e3va.detectron2.data import ImageMapper, registered_dicts
from e3va.detectron2.loader import TrainLoader
from e3va.detectron2.transforms import ResizeShortestEdge

dataloader = OmegaConf.create()

# Multi-scale training as in Swin's detection experiments: a shorter side of 480 to 800.
dataloader.train = L(TrainLoader)(
    dataset=L(registered_dicts)(names="coco_2017_train"),
    mapper=L(ImageMapper)(
        is_train=True,
        augmentations=[
            L(ResizeShortestEdge)(
                short_edge_length=list(range(480, 801, 32)), sample_style="choice", max_size=1333
            ),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="RGB",
        use_instance_mask=True,
    ),
    total_batch_size=16,
    num_workers=4,
    seed="${train.seed}",
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(registered_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(ImageMapper)(
        is_train=False,
        augmentations=[L(ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference"
)
