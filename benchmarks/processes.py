"""Compare a training in one, two and four processes, and count the bytes that they exchange.

    python benchmarks/processes.py [--output benchmarks/results/processes]

Trains small Detectron2 models on drawn images in real processes on the CPU (Gloo): two are started
by Detectron2's launcher, four by torchrun. Compares their weights with those of one process that
has the same batch of eight. Then counts, in two processes, the bytes that one step sends, from
DistributedDataParallel's buckets and from the collective calls that torch dispatches. For models
over Swin-T to L the bytes are those of the trained parameters. Writes tables in MiB, and JSON.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from e3va.detectron2 import HighwayTrainer, add_e3va_config, load_config
from e3va.detectron2.distributed import share_model
from e3va.detectron2.launch import launch
from e3va.utils.atomic import atomic_open
from e3va.utils.measure import MIB

BATCH, SIDE, STEPS = 8, 64, 3
RECIPES = ("e3va_chain", "full")
WORLDS = {2: "Detectron2's launcher", 4: "torchrun"}


@dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        model: ``"semantic"``, ``"cascade"`` or ``"retinanet"``.
        parts: number of parts into which the single process divides the batch, so that it computes
            the same; None for as many parts as all processes have together.
        settings: arguments of the trainer.
        norm: norm of the semantic head; empty for the default.
        memory: memory mode of the backbone.
        optimizer: name in :mod:`torch.optim`.
        dtype: type of weights and images.
        note: remark in the table.
    """

    model: str
    parts: int | None = 1
    settings: dict = field(default_factory=dict)
    norm: str = ""
    memory: str = "standard"
    optimizer: str = "SGD"
    dtype: torch.dtype = torch.float32
    note: str = ""

    @property
    def name(self) -> str:
        settings = [f"{key} {value}" for key, value in self.settings.items()]
        dtype = "float64" if self.dtype == torch.float64 else ""
        parts = [self.model, self.memory, *settings, self.norm, dtype, self.optimizer]
        return ", ".join(filter(None, parts))


# The first three cases put all images into one forward pass of the single process, which adds up
# numbers in another order than several processes. In float32, a number near zero may then get
# another sign before a ReLU: with SyncBN on Intel cores, one of 2e-7 does in the first step, and
# weights differ by 2% of their change. In float64 all gradients agree to 5e-15.
SAME = [
    Case("semantic", memory="plain", dtype=torch.float64),
    Case("semantic", memory="plain", settings={"accumulate": 2}, dtype=torch.float64),
    Case("semantic", memory="plain", norm="SyncBN", dtype=torch.float64),
    Case("semantic", None, settings={"accumulate": 2}),
    Case("semantic", None, settings={"precision": "bf16"}),
    Case("cascade", None),
    Case("cascade", None, settings={"accumulate": 2, "clip_norm": 1.0}),
    Case("cascade", None, memory="lean", settings={"precision": "bf16"}),
]
OTHER = [
    Case("semantic", memory="plain", optimizer="AdamW", note="AdamW enlarges small gradients"),
    Case("semantic", note="taps are kept in half precision: a rounding may turn the other way"),
    Case("cascade", note="mask loss: a mean over the foreground boxes of a process"),
    Case("retinanet", note="divides by a moving mean of the foreground anchors of a process"),
]


def small_cfg(case: Case, recipe: str = "e3va_chain") -> CfgNode:
    """Return a yacs config of a model with a tiny trunk."""
    cfg = get_cfg()
    add_e3va_config(cfg)
    model, fpn = cfg.MODEL, ["p0", "p1", "p2", "p3"]
    model.DEVICE, model.E3VA.PRESET, model.E3VA.MEMORY = "cpu", "swin_nano", case.memory
    model.E3VA.HIGHWAY = CfgNode({"RECIPE": recipe})
    if recipe != "full":
        model.E3VA.HIGHWAY.RANK = 4
    model.BACKBONE.NAME = "build_e3va_swin_fpn_backbone"
    model.FPN.IN_FEATURES, model.FPN.OUT_CHANNELS = fpn, 16
    model.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model.RPN.POST_NMS_TOPK_TRAIN = 30
    model.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.ROI_HEADS.NAME, model.ROI_HEADS.NUM_CLASSES = "CascadeROIHeads", 2
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    model.ROI_BOX_HEAD.FC_DIM, model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = 32, True
    model.MASK_ON, model.ROI_MASK_HEAD.NAME = True, "MaskRCNNConvUpsampleHead"
    model.ROI_MASK_HEAD.NUM_CONV, model.ROI_MASK_HEAD.CONV_DIM = 2, 16
    model.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.SEM_SEG_HEAD.NUM_CLASSES, model.SEM_SEG_HEAD.CONVS_DIM = 3, 16
    model.SEM_SEG_HEAD.NORM = case.norm or "GN"
    names = {"semantic": "SemanticSegmentor", "retinanet": "RetinaNet"}
    model.META_ARCHITECTURE = names.get(case.model, "GeneralizedRCNN")
    if case.model == "semantic":
        model.SEM_SEG_HEAD.CONVS_DIM = 32  # its GN has 32 groups
    if case.model == "retinanet":
        model.BACKBONE.NAME = "build_retinanet_e3va_swin_fpn_backbone"
        model.FPN.IN_FEATURES, model.RETINANET.NUM_CLASSES = ["p1", "p2", "p3"], 2
        model.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    return cfg


def draw_batch(step: int) -> list[dict]:
    """Draw images of one or two bright rectangles, in the form of Detectron2's mapper."""
    generator = torch.Generator().manual_seed(step)
    batch = []
    for place in range(BATCH):
        image = torch.rand(3, SIDE, SIDE, generator=generator) * 100
        labels, masks, boxes = torch.zeros(SIDE, SIDE, dtype=torch.long), [], []
        for number in range(1 + place // (BATCH // 2)):
            x, y = torch.randint(0, SIDE // 2, (2,), generator=generator).tolist()
            mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            mask[y : y + 30, x : x + 24] = True
            image[number, mask], labels[mask] = 250, number + 1
            masks.append(mask)
            boxes.append([x, y, x + 24, y + 30])
        instances = Instances((SIDE, SIDE))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.gt_classes = torch.arange(len(boxes))
        instances.gt_masks = BitMasks(torch.stack(masks))
        name = BATCH * step + place
        batch.append({"image": image, "instances": instances, "sem_seg": labels, "image_id": name})
    return batch


def trainer_for(case: Case, parts: int | None = None, recipe: str = "e3va_chain") -> HighwayTrainer:
    """Build a trainer with this process's consecutive share of every batch."""
    torch.manual_seed(comm.get_rank())  # all processes must get the first one's weights
    model = build_model(small_cfg(case, recipe)).train().to(case.dtype)
    share = BATCH // comm.get_world_size()
    first = comm.get_rank() * share
    batches = [draw_batch(step)[first : first + share] for step in range(STEPS)]
    for example in (example for batch in batches for example in batch):
        example["image"] = example["image"].to(case.dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = getattr(torch.optim, case.optimizer)(
        trained, lr=1e-3 if case.optimizer == "AdamW" else 0.01
    )
    settings = {**case.settings, **({"accumulate": parts} if parts else {})}
    ddp = {"broadcast_buffers": False, "find_unused_parameters": False}
    model = share_model(model, "cpu", ddp)
    # Samples of proposals must not depend on the number of processes.
    return HighwayTrainer(model, batches, optimizer, sample_by_image=True, **settings)


def bare(trainer: HighwayTrainer) -> nn.Module:
    """Return the model without DistributedDataParallel around it."""
    return getattr(trainer.model, "module", trainer.model)


class Collectives(TorchDispatchMode):
    """A mode that counts the bytes given to each of torch's collective operations."""

    def __init__(self):
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__.rstrip("_")
            given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            size = sum(t.numel() * t.element_size() for t in given)
            self.bytes[name] = self.bytes.get(name, 0) + size
        return func(*args, **(kwargs or {}))


def count_bytes(case: Case, recipe: str) -> dict:
    """Count the bytes that a process gives to collectives in the last step, in two ways."""
    trainer = trainer_for(case, recipe=recipe)
    buckets: list[int] = []

    def hook(_, bucket):
        buckets.append(bucket.buffer().numel() * bucket.buffer().element_size())
        average = bucket.buffer().div_(comm.get_world_size())
        future = torch.distributed.all_reduce(average, async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    assert isinstance(trainer.model, DistributedDataParallel)
    trainer.model.register_comm_hook(None, hook)
    trainer.train(0, STEPS - 1)
    buckets.clear()
    seen = Collectives()
    trainer.iter = STEPS - 1
    with seen, trainer.storage:
        trainer.run_step()
    trained = sum(p.numel() * p.element_size() for p in trainer.optimizer_step.parameters)
    return {
        "model": case.name,
        "recipe": recipe,
        "all_reduces": len(buckets),
        "gradient_bytes": sum(buckets),
        "trained_bytes": trained,
        "all_parameter_bytes": sum(
            p.numel() * p.element_size() for p in bare(trainer).parameters()
        ),
        "collectives": seen.bytes,
    }


COUNTED = [
    (Case("semantic", settings={"accumulate": 2}), "e3va_chain"),
    (Case("semantic", settings={"accumulate": 2}), "full"),
    (Case("cascade"), "e3va_chain"),
    (Case("cascade"), "full"),
]


def work(folder: str) -> None:
    """Do the work of one process: all cases, then the counting."""
    torch.set_num_threads(1)
    weights = {}
    for case in SAME + OTHER:
        trainer = trainer_for(case)
        trainer.train(0, STEPS)
        weights[case.name] = bare(trainer).state_dict()
    torch.save(weights, f"{folder}/{comm.get_rank()}.pth")
    if comm.get_world_size() > min(WORLDS):
        return
    counts = [count_bytes(case, recipe) for case, recipe in COUNTED]
    if comm.is_main_process():
        Path(folder, "counts.json").write_text(json.dumps(counts))


def start(world: int, folder: Path) -> None:
    """Run :func:`work` in ``world`` processes."""
    by_torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = [sys.executable, *(by_torchrun if WORLDS[world] == "torchrun" else [])]
    subprocess.run([*command, __file__, "--work", folder], check=True)


@functools.cache
def train_alone(name: str, parts: int) -> tuple[dict, dict]:
    """Train a case in this process; return the trained weights before, and all weights after."""
    trainer = trainer_for(next(case for case in SAME + OTHER if case.name == name), parts)
    model = bare(trainer)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trainer.train(0, STEPS)
    return before, model.state_dict()


def compare(world: int, folder: Path) -> list[dict]:
    """Compare the weights of ``world`` processes, in ``folder``, with those of one process."""
    ranks = [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(world)]
    rows = []
    for case in SAME + OTHER:
        parts = case.parts or world * case.settings.get("accumulate", 1)
        before, one = train_alone(case.name, parts)
        many = [rank[case.name] for rank in ranks]
        rows.append(
            {
                "case": case.name,
                "processes": world,
                "parts_of_one": parts,
                "difference": largest(one, many[0], before),
                "between_processes": max(largest(many[0], other, one) for other in many),
                "change": largest(one, before, before),
                "note": case.note,
            }
        )
    return rows


def largest(first: dict, second: dict, names) -> float:
    """Return the largest difference of a number."""
    return max((first[n].double() - second[n].double()).abs().max().item() for n in names)


def large_models() -> list[dict]:
    """Count the bytes of the trained parameters of the project's configs, on the meta device."""
    rows = []
    for preset in ("swin_t", "swin_s", "swin_b", "swin_l"):
        name = f"COCO/cascade_mask_rcnn_e3va_{preset}_3x.py"
        row = {"config": name}
        for recipe in RECIPES:
            cfg = load_config(name, [f"model.backbone.bottom_up.highway.recipe={recipe}"])
            with torch.device("meta"):
                model = instantiate(cfg.model)
            for part, module in (("backbone", model.backbone.bottom_up), ("model", model)):
                row[f"{part}_{recipe}"] = sum(
                    p.numel() * p.element_size() for p in module.parameters() if p.requires_grad
                )
        rows.append(row)
    return rows


def tables(rows: list[dict], counts: list[dict], large: list[dict]) -> str:
    """Return all tables as Markdown."""
    lines = [
        f"Largest difference of a weight after {STEPS} steps on batches of {BATCH} images.",
        "",
        "| training | processes | one process, parts | difference | of the largest change | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        share = row["difference"] / row["change"]
        lines.append(
            f"| {row['case']} | {row['processes']} | {row['parts_of_one']} | "
            f"{row['difference']:.1e} | {share:.1e} | {row['note']} |"
        )
    lines += [
        "",
        "Bytes that a process gives to collectives in one step, of two (counted).",
        "",
        "| training | recipe | all-reduces | gradients | trained parameters | other |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in counts:
        rest = {k: v for k, v in row["collectives"].items() if k != "allreduce"}
        other = ", ".join(f"{name} {size:,}" for name, size in rest.items()) or "none"
        lines.append(
            f"| {row['model']} | {row['recipe']} | {row['all_reduces']} | "
            f"{row['gradient_bytes']:,} | {row['trained_bytes']:,} | {other} |"
        )
    lines += [
        "",
        "MiB of gradients in one step (computed: bytes of the trained parameters in float32).",
        "",
        "| config | backbone, E³VA | full | model, E³VA | full | E³VA / full |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in large:
        sizes = [row[f"{part}_{m}"] / MIB for part in ("backbone", "model") for m in RECIPES]
        lines.append(
            f"| {row['config']} | {' | '.join(f'{s:.1f}' for s in sizes)} | "
            f"{sizes[2] / sizes[3]:.0%} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder for the tables (default: print only)")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # in the processes that this starts
    args = parser.parse_args()
    if args.work:
        processes = 1 if "RANK" in os.environ else 2  # torchrun has started the processes, or not
        flags = Namespace(num_gpus=processes, num_machines=1, machine_rank=0, dist_url="auto")
        launch(work, (args.work,), flags, "cpu")
        return 0
    torch.set_num_threads(1)
    rows, counts = [], []
    for world in WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            start(world, Path(folder))
            rows += compare(world, Path(folder))
            counts = counts or json.loads(Path(folder, "counts.json").read_text())
    large = large_models()
    text = tables(rows, counts, large)
    print(text)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        text += "\n\nPrinted by `python benchmarks/processes.py`.\n"
        found = {"comparison": rows, "bytes": counts, "large_models": large}
        for name, content in (("processes.md", text), ("processes.json", json.dumps(found))):
            with atomic_open(args.output / name, "w") as file:
                file.write(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
