"""Measure how far the objects of one 12-megapixel image raise the peak memory in Detectron2.

    python benchmarks/mask_memory_detectron2.py [draw evaluate mapper step]

Each case runs in a process of its own, with objects and with (nearly) none. The table has the
difference of the two peaks of the resident memory. The model is small and its weights are random;
a hook replaces what its ROI heads predict by boxes of half the image's sides.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

WIDTH, HEIGHT = 4000, 3000
CASES = {"draw": 100, "evaluate": 100, "mapper": 450, "step": 450}  # numbers of objects
FEW = {"draw": 0, "evaluate": 0, "mapper": 1, "step": 1}
CONFIG = "custom/cascade_mask_rcnn_e3va_swin_t.py"
SMALL = [
    "model.backbone.bottom_up.preset=swin_nano",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.device=cpu",
    "data.classes=[thing]",
    "model.roi_heads.num_classes=1",
]


def boxes(count: int) -> np.ndarray:
    """Return x, y, width, height [N, 4] of boxes of half the image's sides."""
    corners = np.random.default_rng(0).random((count, 2)) * (WIDTH // 2, HEIGHT // 2)
    sides = np.full((count, 2), (WIDTH // 2, HEIGHT // 2))
    return np.concatenate([corners.round(), sides], axis=1)


def write_data(folder: Path, count: int) -> list[str]:
    """Write an image and its COCO file, whose masks are RLE; return the config's overrides."""
    import pycocotools.mask as mask_util
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(folder / "a.jpg")
    annotations = []
    for number, box in enumerate(boxes(max(count, 1)).tolist(), 1):
        x, y, w, h = box
        triangle = [[x, y, x + w, y + h / 3, x + w / 2, y + h]]
        rle = mask_util.merge(mask_util.frPyObjects(triangle, HEIGHT, WIDTH))
        rle["counts"] = rle["counts"].decode()
        about = {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0}
        annotations.append({**about, "bbox": box, "area": w * h / 2, "segmentation": rle})
    image = {"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    data = [f"data.{s}.json={folder / 'a.json'}" for s in ("train", "val")]
    data += [f"data.{s}.images={folder}" for s in ("train", "val")]
    return [*SMALL, *data, f"train.output_dir={folder / 'output'}"]


def detect(model: torch.nn.Module, count: int) -> None:
    """Let a model's ROI heads predict ``count`` objects."""
    from detectron2.structures import Boxes, Instances

    def replace(_, __, output):
        (found,) = output[0]
        height, width = found.image_size
        result = Instances(found.image_size)
        given = torch.from_numpy(boxes(count)).float() * (width / WIDTH)
        result.pred_boxes = Boxes(torch.cat([given[:, :2], given[:, :2] + given[:, 2:]], dim=1))
        result.scores, result.pred_classes = torch.full((count,), 0.9), torch.zeros(count).long()
        noise = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(0))
        masks = torch.nn.functional.interpolate(noise, (28, 28), mode="bicubic")
        result.pred_masks = masks.clamp(0, 1)
        return [result], output[1]

    model.roi_heads.register_forward_hook(replace)


def run(case: str, count: int, folder: Path) -> None:
    """Run one case in this process."""
    from detectron2.config import instantiate
    from detectron2.utils.events import EventStorage

    from e3va.detectron2 import LazyPredictor, engine, load_config
    from e3va.detectron2.visualize import predict_folder

    torch.manual_seed(0)
    cfg = load_config(CONFIG, write_data(folder, count))
    if case == "mapper":
        (record,) = instantiate(cfg.dataloader.train.dataset)
        example = instantiate(cfg.dataloader.train.mapper)(record)
        masks = example["instances"].gt_masks
        chosen = torch.arange(min(128, len(masks)))  # positive proposals of a step
        masks[chosen].crop_and_resize(example["instances"].gt_boxes.tensor[chosen], 28)
        return
    model = instantiate(cfg.model)
    if case == "step":
        (record,) = instantiate(cfg.dataloader.train.dataset)
        with EventStorage():
            losses = model.train()([instantiate(cfg.dataloader.train.mapper)(record)])
        sum(losses.values()).backward()
    elif case == "evaluate":
        detect(model, count)
        engine.evaluate(cfg, model)
    else:
        torch.save({"model": model.state_dict()}, folder / "model.pth")
        predictor = LazyPredictor(cfg, folder / "model.pth")
        detect(predictor.model, count)
        predict_folder(predictor, [folder / "a.jpg"], folder / "drawn", 0.5)


def peak(case: str, count: int) -> float:
    """Return the peak of the resident memory of a new process, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--run", case, str(count), folder]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{case}, {count} objects: exit status {result.returncode}\n{result.stderr}")
    return float(result.stdout.split()[-1])


def main() -> None:
    """Print the table."""
    print("| case | objects | peak, MiB | without objects, MiB | difference, MiB |")
    print("|---|---|---|---|---|")
    for case in sys.argv[1:] or CASES:
        with_objects, without = peak(case, CASES[case]), peak(case, FEW[case])
        numbers = f"{with_objects:,.0f} | {without:,.0f} | {with_objects - without:,.0f}"
        print(f"| {case} | {CASES[case]} | {numbers} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        main()
