"""Part recipes: step times of the published configs, and the hours that they would take."""

import torch
from cost.batch import Drawn, detectron2_examples, draw
from torch import nn

from .part import Part
from .subjects import autocast, has_detectron2, label_map

# Config, height and width of an image of its training, images on a card.
CONFIGS = [
    ("COCO/cascade_mask_rcnn_e3va_swin_l_1x.py", (800, 1333), 2),
    ("COCO/cascade_mask_rcnn_e3va_swin_t_3x.py", (800, 1333), 2),
    ("ADE20K/semantic_fpn_e3va_swin_t_80k.py", (512, 512), 2),
    ("ADE20K/semantic_fpn_e3va_swin_l_80k.py", (512, 512), 2),
    ("VOC/retinanet_e3va_swin_t.py", (800, 1067), 2),
]
METHODS = ("full", "e3va_chain")
SIDE = 96  # of images in short


def run(part: Part) -> None:
    """Measure a step of each config, with full fine-tuning and with the highway."""
    if not has_detectron2():
        part.record("notes", text="recipes: Detectron2 is not installed")
        return
    for name, size, batch in CONFIGS[2:3] if part.short else CONFIGS:
        if part.out_of_time(10):
            part.record("notes", text=f"{name}: no time left")
            continue
        with part.attempt(name):
            _measure(part, name, (SIDE, SIDE) if part.short else size, batch)


def _measure(part: Part, name: str, size: tuple[int, int], batch: int) -> None:
    from e3va.detectron2 import load_config

    cfg = load_config(name)
    drawn = [draw(*size, seed) for seed in range(batch)]
    found = {}
    for method in METHODS:
        bottom_up = cfg.model.backbone.bottom_up
        bottom_up.highway = {"recipe": method}
        if part.short:
            bottom_up.preset = "swin_nano"
        found[method] = _seconds(part, cfg.model, drawn)
    images = int(cfg.dataloader.train.total_batch_size)
    part.record(
        "recipes",
        config=name,
        iterations=int(cfg.train.max_iter),
        images=images,
        batch=batch,
        seconds=found,
    )


def _seconds(part: Part, model_cfg, drawn: list[Drawn]) -> float:
    from detectron2.config import instantiate
    from detectron2.utils.events import EventStorage

    from e3va.detectron2.lean import prepare_model

    torch.manual_seed(0)
    model: nn.Module = instantiate(model_cfg).to(part.device).train()
    prepare_model(model, mixed=True)
    batch = detectron2_examples(drawn, part.device)
    for example, one in zip(batch, drawn, strict=True):
        example["sem_seg"] = label_map(one).to(part.device)
        classes = example["instances"].gt_classes
        example["instances"].gt_classes = classes % _classes(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step() -> None:
        with EventStorage(), autocast(part.device, part.half):
            loss = sum(model(batch).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return part.seconds(step)


def _classes(model: nn.Module) -> int:
    heads = getattr(model, "roi_heads", model)
    return getattr(heads, "num_classes", 1)
