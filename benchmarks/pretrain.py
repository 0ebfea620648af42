"""Train the demonstration trunk on pictures that this script draws, without downloads.

    python benchmarks/pretrain.py [--steps 10000] [--output e3va/assets/swin_micro.safetensors]

The pictures show overlapping shapes of nineteen kinds in random textures over a random texture,
with light, blur and noise. The task, at strides 4, 8 and 16, is to predict for each pixel the kind
of the visible shape, the offset to the middle of its visible part, and whether the pixel lies at
its rim. The output file holds only the trunk's tensors, in float16, and a description of the
training in its metadata. With --show the script also writes a sheet of twelve pictures.
"""

import argparse
import json
import multiprocessing
import os
from pathlib import Path

import drawing
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from e3va import E3VABackbone, get_preset
from e3va.utils.atomic import rename_atomically

KINDS = ("background", *drawing.OUTLINES, "blob")
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # as Swin's pretraining


def blob(rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random outline."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 0.75 + sum(
        rng.normal(0, 0.16 / order) * np.sin(order * angle + rng.uniform(0, 6))
        for order in (2, 3, 4, 5)
    )
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def draw_picture(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a picture [size, size, 5] uint8; the last two channels are a shape's kind and number."""
    picture = drawing.texture(size, rng)
    labels = np.zeros((size, size, 2), np.uint8)
    for number in range(1, int(rng.integers(3, 10))):
        kind = int(rng.integers(1, len(KINDS)))
        outline = drawing.OUTLINES[KINDS[kind]] if KINDS[kind] != "blob" else blob(rng)
        pose = drawing.Pose(
            tuple(rng.uniform(0, size, 2)),
            rng.uniform(0.07, 0.26) * size,
            rng.uniform(0, 2 * np.pi),
            rng.uniform(0.65, 1.0),
        )
        alpha = drawing.cover(pose.place(outline), size)
        drawing.paint(picture, alpha, drawing.shade(drawing.texture(size, rng), rng))
        labels[alpha > 0.5] = kind, number
    return np.concatenate([drawing.finish(picture, rng), labels], axis=2)


def _draw_many(job: tuple[int, int, int]) -> np.ndarray:
    start, count, size = job
    return np.stack(
        [draw_picture(size, np.random.default_rng((0, start + i))) for i in range(count)]
    )


def draw_pictures(count: int, size: int) -> Tensor:
    """Draw pictures and labels [count, 5, size, size], uint8; every call draws the same."""
    jobs = [(start, min(64, count - start), size) for start in range(0, count, 64)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        drawn = tqdm(pool.imap(_draw_many, jobs), "drawing", len(jobs), unit="64 pictures")
        return torch.cat([torch.from_numpy(part).permute(0, 3, 1, 2) for part in drawn])


class DenseHeads(nn.Module):
    """A top-down pyramid with one shared head: kind, offset to the middle, rim."""

    def __init__(self, dims: tuple[int, ...], width: int = 64):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in dims)
        self.head = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.out = nn.Conv2d(width, len(KINDS) + 3, 1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map p0..p3 to predictions [B, kinds + 3, H, W] at strides 4, 8 and 16."""
        above, outputs = None, []
        for level in reversed(range(len(features))):
            x = self.lateral[level](features[level])
            above = x if above is None else x + F.interpolate(above, size=x.shape[-2:])
            if level < 3:
                outputs.append(self.out(self.head(above)))
        return outputs[::-1]


def targets(kind: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Return the offset to a shape's middle and the rim, from each pixel's kind and number.

    Args:
        kind: kind of each pixel's shape [B, H, W].
        number: number of each pixel's shape [B, H, W].

    Returns:
        The offset [B, 2, H, W], in units of the root of the shape's area, and whether a neighboring
        pixel belongs to another shape.
    """
    batch, height, width = kind.shape
    shapes = number.flatten(1) + 32 * torch.arange(batch)[:, None]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y]).flatten(1).float()
    index = shapes.flatten()
    area = torch.bincount(index, minlength=32 * batch).clamp(min=1).float()
    offsets = []
    for along in place:
        along = along.repeat(batch)
        middle = torch.bincount(index, along, 32 * batch) / area
        offsets.append((middle[index] - along) / area[index].sqrt())
    offset = torch.stack(offsets).view(2, batch, height, width).transpose(0, 1)
    around = F.pad(number.float()[:, None], (1, 1, 1, 1), mode="replicate")
    rim = F.max_pool2d(around, 3, 1) != -F.max_pool2d(-around, 3, 1)
    return offset.float(), rim[:, 0]


def loss_of(predictions: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss, and the share of stride-4 pixels on shapes with the right kind."""
    kind, number = labels[:, 0].long(), labels[:, 1].long()
    offset, rim = targets(kind, number)
    total, right = 0, None
    for prediction in predictions:
        stride = kind.shape[-1] // prediction.shape[-1]
        at = slice(stride // 2, None, stride)
        here, on = kind[:, at, at], kind[:, at, at] > 0
        logits, where, edge = prediction.split([len(KINDS), 2, 1], dim=1)
        # Most pixels are background, and the shapes are to be learned.
        weight = torch.ones(len(KINDS))
        weight[0] = 0.3
        total = total + F.cross_entropy(logits, here, weight)
        distance = (where - offset[:, :, at, at]).abs().sum(1)
        total = total + (distance * on).sum() / on.sum().clamp(min=1)
        near = F.max_pool2d(rim.float()[:, None], stride)
        total = total + F.binary_cross_entropy_with_logits(edge, near)
        if right is None:
            right = (logits.argmax(1) == here)[on].float().mean()
    return total / len(predictions), right


def augment(pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip, turn and recolor at random; return normalized images and labels."""
    flip, turns = (
        torch.randint(0, 2, (1,), generator=generator),
        torch.randint(4, (1,), generator=generator),
    )
    pictures = torch.rot90(pictures, int(turns), (2, 3))
    pictures = pictures.flip(3) if flip else pictures
    images, labels = pictures[:, :3].float(), pictures[:, 3:]
    images = images[:, torch.randperm(3, generator=generator)]
    gain = 0.6 + 0.8 * torch.rand(len(images), 3, 1, 1, generator=generator)
    images = (images * gain).clamp(0, 255)
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), labels


def start(module: nn.Module) -> None:
    """Initialize a linear layer by its width: Swin's deviation of 0.02 is for wide trunks."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)


def train(pictures: Tensor, preset: str, steps: int, batch: int, rate: float) -> tuple:
    """Train a whole backbone of ``preset``; return its trunk and accuracy."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    backbone = E3VABackbone(preset, "full")
    backbone.apply(start)
    heads = DenseHeads(get_preset(preset).dims)
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    accuracy = 0.0
    bar = tqdm(range(steps), "training", unit="step", mininterval=5)
    for _ in bar:
        chosen = torch.randint(len(pictures), (batch,), generator=generator)
        images, labels = augment(pictures[chosen], generator)
        loss, right = loss_of(heads(list(backbone(images).values())), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        accuracy += 0.01 * (right.item() - accuracy)
        bar.set_postfix(loss=f"{loss.item():.2f}", kind=f"{accuracy:.2f}", refresh=False)
    return backbone.trunk, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="swin_micro")
    parser.add_argument("--pictures", type=int, default=12000)
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--output", type=Path, default=Path("e3va/assets/swin_micro.safetensors"))
    parser.add_argument("--show", type=Path, help="also write some of the pictures here, as PNG")
    args = parser.parse_args()
    pictures = draw_pictures(args.pictures, args.size)
    if args.show:
        rows = [torch.cat(list(pictures[i : i + 6, :3]), dim=2) for i in (0, 6)]
        Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(args.show)
    trunk, accuracy = train(pictures, args.preset, args.steps, args.batch, args.rate)
    about = {
        "preset": args.preset,
        "trained_on": f"{args.pictures} drawn pictures of {args.size} px, {args.steps} steps of "
        f"{args.batch} (benchmarks/pretrain.py)",
        "kinds_right": f"{accuracy:.3f} of the pixels on shapes, in the last 100 steps or so",
    }
    state = {name: value.half().contiguous() for name, value in trunk.state_dict().items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with rename_atomically(args.output) as temporary:
        save_file(state, temporary, metadata=about)
    print(json.dumps(about, indent=1))
    print(f"wrote {args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
