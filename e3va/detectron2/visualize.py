"""Draw predictions for images, folders and globs into a folder."""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image
from tqdm import tqdm

from ..utils.atomic import atomic_open
from ..utils.errors import UserError, unreadable_image
from ..utils.paths import find_images, free_name
from .predictor import LazyPredictor

READABLE = 480  # pixels of the shorter side from which labels are readable


def draw(image: np.ndarray, instances: Instances, metadata: Metadata) -> np.ndarray:
    """Draw boxes, masks, class names and scores.

    Args:
        image: [H, W, 3] uint8, BGR.
        instances: predictions in the image's coordinates.
        metadata: class names in ``thing_classes``; without them, class numbers are drawn.

    Returns:
        [H', W', 3] uint8, RGB; small images are enlarged, so that labels do not cover them.
    """
    visualizer = _visualizer(image, metadata)
    return visualizer.draw_instance_predictions(instances.to("cpu")).get_image()


def draw_labels(image: np.ndarray, labels: np.ndarray, metadata: Metadata) -> np.ndarray:
    """Draw a label map with class names; a class has the same color in all pictures.

    Args:
        image: [H, W, 3] uint8, BGR.
        labels: [H, W], a class number in every pixel; pixels with other numbers are not colored.
        metadata: class names in ``stuff_classes``; without them, class numbers are drawn. Colors in
            ``stuff_colors``, if it has any.

    Returns:
        a picture as from :func:`draw`.
    """
    names = metadata.get("stuff_classes") or [str(k) for k in range(int(labels.max()) + 1)]
    palette = colormap(rgb=True, maximum=255)
    colors = [palette[k % len(palette)].tolist() for k in range(len(names))]
    metadata = Metadata(
        stuff_classes=list(names), stuff_colors=metadata.get("stuff_colors") or colors
    )
    return _visualizer(image, metadata).draw_sem_seg(labels, alpha=0.5).get_image()


def _visualizer(image: np.ndarray, metadata: Metadata) -> Visualizer:
    scale = max(1.0, READABLE / min(image.shape[:2]))
    return Visualizer(image[:, :, ::-1], metadata, scale, ColorMode.IMAGE)


def draw_output(
    image: np.ndarray, output: dict, metadata: Metadata, threshold: float
) -> tuple[np.ndarray, str]:
    """Draw a model's output for an image: its instances, or its label map.

    Args:
        image: [H, W, 3] uint8, BGR.
        output: output of the model, with ``instances`` or ``sem_seg`` [classes, H, W].
        metadata: class names, see :func:`draw` and :func:`draw_labels`.
        threshold: lowest score of the instances to draw.

    Returns:
        the picture, and a short text about its contents.
    """
    if "instances" in output:
        kept = output["instances"][output["instances"].scores >= threshold]
        return draw(image, kept, metadata), f"{len(kept)} objects"
    labels = output["sem_seg"].argmax(dim=0).cpu()
    return draw_labels(image, labels.numpy(), metadata), _shares(labels, metadata)


def _shares(labels: torch.Tensor, metadata: Metadata) -> str:
    """Return the classes of a label map with their shares of the pixels, the largest first."""
    names = metadata.get("stuff_classes") or []
    classes, counts = labels.unique(return_counts=True)
    shares = sorted(zip(counts.tolist(), classes.tolist(), strict=True), reverse=True)
    return ", ".join(
        f"{names[k] if k < len(names) else k} {count / labels.numel():.0%}" for count, k in shares
    )


def predict_folder(
    predictor: LazyPredictor, images: list[Path], output: Path, threshold: float
) -> int:
    """Predict each image, draw it into ``output`` as PNG, and show progress.

    Returns:
        the number of images that could not be read; a line on stderr names each.
    """
    output.mkdir(parents=True, exist_ok=True)
    failed, taken = 0, set()
    for path in tqdm(images, unit="image", disable=None):
        try:
            image = read_image(str(path), format="BGR")
        except (OSError, SyntaxError) as error:
            tqdm.write(f"error: {unreadable_image(path, error).line}", file=sys.stderr)
            failed += 1
            continue
        found = predictor(np.ascontiguousarray(image))
        picture, what = draw_output(image, found, predictor.metadata, threshold)
        target = output / free_name(path, ".png", taken)
        with atomic_open(target) as file:
            Image.fromarray(picture).save(file, format="PNG")
        tqdm.write(f"{path}: {what} -> {target}")
    return failed


def main(description: str) -> None:
    """Run the command line of ``projects/E3VA/demo.py``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        help="a config file, a config's name, or config.yaml of an output folder (default: the "
        "config that the adapter names)",
    )
    parser.add_argument(
        "--weights",
        help="a checkpoint, an adapter's folder, or an e3va:// address of the model zoo (default: "
        "the config's init_checkpoint)",
    )
    parser.add_argument(
        "--trunk",
        help="the adapter's trunk: a file or an e3va:// address (default: the adapter says where "
        "it is)",
    )
    parser.add_argument(
        "--any-trunk", action="store_true", help="load an adapter on a trunk with other weights"
    )
    parser.add_argument("--input", nargs="+", required=True, help="images, folders, globs")
    parser.add_argument("--output", required=True, help="folder of the drawn images")
    parser.add_argument("--confidence-threshold", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the config's)")
    parser.add_argument("--opts", nargs="*", default=[], help="key=value overrides of the config")
    args = parser.parse_args()
    try:
        images = find_images(args.input)
        output = Path(args.output).expanduser()
        if output.exists() and not output.is_dir():
            raise UserError(f"--output {output} is a file: expected a folder")
        predictor = LazyPredictor(
            *(args.config_file, args.weights, args.opts, args.device),
            trunk=args.trunk,
            any_trunk=args.any_trunk,
        )
        failed = predict_folder(predictor, images, output, args.confidence_threshold)
    except UserError as error:
        sys.exit(f"error: {error.line}")
    print(f"{len(images) - failed} of {len(images)} images drawn into {output}")
    sys.exit(1 if failed else 0)
