import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from omegaconf import OmegaConf

from e3va.detectron2.data import registered_dicts
from e3va.detectron2.labels import LabelMapper, registered_label_evaluator
from e3va.detectron2.loader import TrainLoader
from e3va.detectron2.transforms import ResizeShortestEdge

dataloader = OmegaConf.create()

# Augmentation as in mmsegmentation (configs/_base_/datasets/ade20k.py) and in Swin's training: a
# shorter side from half to twice 512, and crops of 512 in which no class fills more than 75%.
# Detectron2 has three of the four color changes there; a shift of the hue is missing.
dataloader.train = L(TrainLoader)(
    dataset=L(registered_dicts)(names="ade_challenge_2016_train", filter_empty=False),
    mapper=L(LabelMapper)(
        is_train=True,
        augmentations=[
            L(ResizeShortestEdge)(
                short_edge_length=list(range(256, 1025)), sample_style="choice", max_size=4096
            ),
            L(T.RandomCrop_CategoryAreaConstraint)(
                crop_type="absolute",
                crop_size=[512, 512],
                single_category_max_area=0.75,
                ignored_category=255,
            ),
            L(T.RandomFlip)(horizontal=True),
            *(
                L(T.RandomApply)(
                    tfm_or_aug=L(_change)(intensity_min=_low, intensity_max=_high), prob=0.5
                )
                for _change, _low, _high in (
                    (T.RandomBrightness, 0.875, 1.125),
                    (T.RandomContrast, 0.5, 1.5),
                    (T.RandomSaturation, 0.5, 1.5),
                )
            ),
        ],
        image_format="RGB",
        classes=150,
    ),
    total_batch_size=16,
    num_workers=4,
    seed="${train.seed}",
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(registered_dicts)(names="ade_challenge_2016_val", filter_empty=False),
    mapper=L(LabelMapper)(
        is_train=False,
        augmentations=[L(ResizeShortestEdge)(short_edge_length=512, max_size=2048)],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(registered_label_evaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}/inference"
)
