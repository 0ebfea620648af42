"""Draw predictions for images, folders and globs into a folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer
from PIL import Image

from ..utils.atomic import atomic_open, make_folder
from ..utils.errors import UserError
from ..utils.paths import find_images, free_name
from ..utils.progress import Progress
from ..utils.terminal import escape_unprintable
from .images import read_array
from .masks import masks_on_demand
from .predictor import LazyPredictor

READABLE = 480  # pixels of the shorter side; labels would cover smaller pictures
ENLARGED = 2000  # most pixels of the longer side of an enlarged picture
DRAWABLE = 65000  # most pixels of a side that Matplotlib draws
_HELP = {
    "--config-file": "a config file, a config's name, or config.yaml of an output folder (default: "
    "the config that the adapter names)",
    "--weights": "a checkpoint, an adapter's folder, or an e3va:// or hf:// address "
    "(default: the config's init_checkpoint)",
    "--trunk": "the adapter's trunk: a file or an address (default: the adapter says where it is)",
    "--any-trunk": "load an adapter on other trunk weights",
    "--input": "images, folders, globs",
    "--output": "folder of the drawn images",
    "--confidence-threshold": "lowest score of the objects to draw (default: 0.5)",
    "--device": "cpu, cuda, cuda:1 (default: the config's)",
    "--opts": "key=value overrides of the config",
}
_SETTINGS = {
    "--any-trunk": {"action": "store_true"},
    "--input": {"nargs": "+", "required": True},
    "--output": {"required": True},
    "--confidence-threshold": {"type": float, "default": 0.5, "metavar": "SCORE"},
    "--opts": {"nargs": "*", "default": []},
}


def draw_labels(image: np.ndarray, labels: np.ndarray, metadata: Metadata) -> np.ndarray:
    """Draw a label map [H, W] over a BGR image [H, W, 3]; return RGB, perhaps larger.

    A class has the same color in all pictures. Without class names, class numbers are drawn. Pixels
    with numbers that are no class stay as in the image.
    """
    names = metadata.get("stuff_classes") or [str(k) for k in range(int(labels.max()) + 1)]
    palette = colormap(rgb=True, maximum=255)
    colors = metadata.get("stuff_colors") or [
        palette[k % len(palette)].tolist() for k in range(len(names))
    ]
    metadata = Metadata(stuff_classes=list(names), stuff_colors=colors)
    width = image.shape[1]
    if width == 2:  # Visualizer takes masks of this width for polygons
        image = np.pad(image, ((0, 0), (0, 1), (0, 0)), "edge")
        labels = np.pad(labels, ((0, 0), (0, 1)), "edge")
    drawn = _render(_visualizer(image, metadata).draw_sem_seg(labels, alpha=0.5))
    return drawn[:, : drawn.shape[1] * width // image.shape[1]]


def _visualizer(image: np.ndarray, metadata: Metadata) -> Visualizer:
    """Return a canvas; small images are enlarged, so that labels do not cover them."""
    shorter, longer = sorted(image.shape[:2])
    scale = max(1.0, min(READABLE / shorter, ENLARGED / longer))
    scale = min(scale, DRAWABLE / longer)
    canvas = Visualizer(image[:, :, ::-1], metadata, scale, ColorMode.IMAGE)
    # As VisImage does, which rounds a side of 1 pixel of a very long image down to 0.
    height, width = ((max(1, side * scale) + 1e-2) / canvas.output.dpi for side in image.shape[:2])
    canvas.output.fig.set_size_inches(width, height)
    return canvas


def _render(drawn: VisImage) -> np.ndarray:
    """Return the RGB picture [H, W, 3] that ``drawn.get_image()`` returns, with less memory.

    Matplotlib needs 100 bytes a pixel to place the photo, even where its size does not change.
    There the photo is copied into Matplotlib's canvas, and the drawings are put onto it.
    """
    renderer = drawn.canvas.get_renderer()
    pixels = np.asarray(renderer.buffer_rgba())  # a view
    if pixels.shape[:2] != drawn.img.shape[:2]:
        return drawn.get_image()
    pixels[..., :3], pixels[..., 3] = drawn.img, 255
    drawn.ax.images[0].remove()
    drawn.fig.draw(renderer)
    return pixels[..., :3].copy()


def draw_output(
    image: np.ndarray, output: dict, metadata: Metadata, threshold: float
) -> tuple[np.ndarray, str]:
    """Draw the instances or the label map in a model's output; return picture and summary."""
    if "instances" in output:
        kept = output["instances"][output["instances"].scores >= threshold].to("cpu")
        if kept.has("pred_masks"):
            kept.pred_masks = _outlines(kept.pred_masks)
        drawn = _visualizer(image, metadata).draw_instance_predictions(kept)
        return _render(drawn), f"{len(kept)} objects"
    labels = output["sem_seg"].argmax(dim=0).cpu()
    return draw_labels(image, labels.numpy(), metadata), _shares(labels, metadata)


def _outlines(masks: Sequence[torch.Tensor]) -> np.ndarray:
    """Return the polygons of each mask [H, W]: an array [N] of lists, as ``Visualizer`` draws them.

    ``Visualizer`` itself makes the same polygons, but holds all masks at once.
    """
    outlines = np.empty(len(masks), object)
    for place, mask in enumerate(masks):
        outlines[place] = GenericMask([], *mask.shape).mask_to_polygons(mask.numpy())[0]
    return outlines


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
    """Predict and draw each image into ``output`` as PNG; return how many could not be read."""
    make_folder(output)
    failed, taken = 0, set()
    with Progress(0, len(images), unit="image", what="predicting") as progress:
        for number, path in enumerate(images, 1):
            try:
                image = read_array({"file_name": path}, "BGR")
            except UserError as error:
                print(f"error: {error.line}", file=sys.stderr)
                failed += 1
                continue
            with masks_on_demand(predictor.model):
                found = predictor(np.ascontiguousarray(image))
            picture, what = draw_output(image, found, predictor.metadata, threshold)
            target = output / free_name(path, ".png", taken)
            with atomic_open(target) as file:
                Image.fromarray(picture).save(file, format="PNG")
            progress.say(f"{path}: {what} -> {target}")
            progress.step(number, {})
    return failed


def main(description: str) -> None:
    """Run the command line of ``projects/E3VA/demo.py``."""
    escape_unprintable()
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, text in _HELP.items():
        parser.add_argument(flag, help=text, **_SETTINGS.get(flag, {}))
    args = parser.parse_args()
    try:
        images = find_images(args.input)
        output = Path(args.output).expanduser()
        if output.exists() and not output.is_dir():
            raise UserError(f"--output {output} is a file: expected a folder")
        given = (args.config_file, args.weights, args.opts, args.device)
        predictor = LazyPredictor(*given, trunk=args.trunk, any_trunk=args.any_trunk)
        failed = predict_folder(predictor, images, output, args.confidence_threshold)
    except UserError as error:
        sys.exit(f"error: {error.line}")
    print(f"{len(images) - failed} of {len(images)} images drawn into {output}")
    sys.exit(1 if failed else 0)
