"""Write the table of all configs in projects/E3VA/README.md, like that of Detectron2's model zoo.

    python benchmarks/configs.py [--readme projects/E3VA/README.md] [--only 'VOC/*'] [--side 512]

Builds the model of each config at its full size, with random weights, runs it forward once on one
square image, and measures the bytes kept for the backward pass. The image has enough objects to
fill the samples of the box and mask heads. Configs for a user's own data get three classes. Takes
some minutes on the CPU.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from e3va import UserError
from e3va.detectron2 import load_config
from e3va.detectron2.backbone import model_parts
from e3va.detectron2.config import CONFIG_ROOT
from e3va.detectron2.describe import set_classes
from e3va.detectron2.lean import prepare_model
from e3va.utils.atomic import atomic_open
from e3va.utils.measure import MIB, count_parameters, track_saved_bytes

BEGIN, END = "<!-- configs: begin -->", "<!-- configs: end -->"
LINK = "../../configs"  # from the README's folder
OWN = ("one", "two", "three")  # classes of a user's own data
MEMORIES = ("standard", "lean")
GRID = (8, 16)  # objects; a quarter of 512 samples are of objects
OPEN = "–"  # not measured: nobody has trained it
DATA = {"COCO": "COCO", "VOC": "Pascal VOC 2007+2012", "ADE20K": "ADE20K", "custom": "Own data"}
TASKS = {
    ("box AP", "mask AP"): "instance segmentation",
    ("box AP",): "detection",
    ("AP", "AP50", "AP75"): "detection",
    ("mIoU", "pixel accuracy"): "semantic segmentation",
    ("PQ", "box AP", "mask AP", "mIoU"): "panoptic segmentation",
}


@dataclass(frozen=True)
class Row:
    """The measurements of a model.

    Attributes:
        trained: number of parameters that train in the whole model.
        highway: number of parameters that train in the backbone.
        share: share of the backbone's parameters that train.
        kept: MiB kept for the backward pass, by ``memory``.
    """

    trained: int
    highway: int
    share: float
    kept: dict[str, float]


def config_names(pattern: str = "*") -> list[str]:
    """Return the names of all LazyConfigs of one model that match.

    Raises:
        UserError: no config matches.
    """
    paths = (path.relative_to(CONFIG_ROOT) for path in CONFIG_ROOT.rglob("*.py"))
    names = [p.as_posix() for p in paths if p.parts[0] != "common" and not p.name.startswith("_")]
    found = [name for name in names if fnmatch(name, pattern) and "_and_" not in name]
    if not found:
        raise UserError(f"--only {pattern}: no config matches; expected for example 'VOC/*'")
    return sorted(found, key=order)


def order(name: str) -> tuple:
    """Return a sort key: data sets as in ``DATA``, then kinds, schedules and Swin-T to L."""
    folder, _, stem = name.partition("/")
    kind, _, rest = stem.removesuffix(".py").partition("_e3va_swin_")
    size, _, schedule = rest.partition("_")
    known = list(DATA)
    place = known.index(folder) if folder in known else len(known)
    return place, folder, kind, len(schedule), schedule, "tsbl".find(size)


def load(name: str) -> DictConfig:
    """Load a config; one for a user's own data gets the classes ``OWN``."""
    cfg = load_config(name)
    if "data" in cfg:
        set_classes(cfg, OWN)
    return cfg


def metrics(cfg: DictConfig) -> tuple[str, ...]:
    """Return the names of the scores of a config's model."""
    if "PascalVOC" in str(cfg.dataloader.evaluator):
        return ("AP", "AP50", "AP75")
    heads = cfg.model.get("roi_heads", {})
    boxes = ("box AP", "mask AP") if "mask_head" in heads else ("box AP",)
    if "sem_seg_head" not in cfg.model:
        return boxes
    return ("PQ", *boxes, "mIoU") if heads else ("mIoU", "pixel accuracy")


def example(side: int) -> dict:
    """Return a square image with a grid of rectangles, their masks, and a label map."""
    rows, columns = GRID
    high, wide = side / rows, side / columns
    boxes = [
        [c * wide, r * high, (c + 1) * wide, (r + 1) * high]
        for r in range(rows)
        for c in range(columns)
    ]
    instances = Instances((side, side))
    instances.gt_boxes = Boxes(torch.tensor(boxes))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    instances.gt_masks = PolygonMasks([[[a, b, c, b, c, d, a, d]] for a, b, c, d in boxes])
    image = 255 * torch.rand(3, side, side)
    labels = torch.zeros(side, side, dtype=torch.long)
    return {"image": image, "instances": instances, "sem_seg": labels}


def measure(model_cfg: DictConfig, side: int) -> Row:
    """Build a model with each ``memory`` and run it forward."""
    kept = {}
    for memory in MEMORIES:
        torch.manual_seed(0)
        cfg = model_cfg.copy()
        cfg.backbone.bottom_up.memory = memory
        model = instantiate(cfg).train()
        rows = count_parameters(model, model_parts(model))
        prepare_model(model, mixed=False)
        with EventStorage(0), track_saved_bytes(model, model_parts(model)) as saved:
            model([example(side)])
        kept[memory] = saved.total / MIB
    backbone = [row for row in rows if row.part in ("trunk", "highway")]
    trained, total = (sum(getattr(row, key) for row in backbone) for key in ("trained", "total"))
    return Row(sum(row.trained for row in rows), trained, trained / total, kept)


def rows(names: list[str], side: int) -> Iterator[tuple[str, DictConfig, Row]]:
    """Measure configs; equal models are measured once."""
    measured: dict[str, Row] = {}
    for name in tqdm(names, unit="config", disable=None):
        cfg = load(name)
        key = str(OmegaConf.to_container(cfg.model, resolve=True))
        if key not in measured:
            measured[key] = measure(cfg.model, side)
        yield name, cfg, measured[key]


def title(name: str, cfg: DictConfig) -> str:
    """Return the heading of a config's table."""
    folder = name.split("/")[0]
    scores = metrics(cfg)
    return f"{DATA.get(folder, folder)}: {TASKS.get(scores, ', '.join(scores))}"


def head(scores: tuple[str, ...]) -> list[str]:
    """Return the first two lines of a table."""
    names = ["config", "iterations × batch", "trained (M)", "trained in the backbone (M)"]
    names += ["share of the backbone", "kept for backward (MiB)", "the same, `memory=lean`"]
    names += [*scores, "download"]
    return [f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 2) + "---|"]


def line(name: str, cfg: DictConfig, row: Row) -> str:
    """Return a config's line; the scores, which need a training, stay empty."""
    cells = [
        f"[{name.removesuffix('.py')}]({LINK}/{name})",
        f"{cfg.train.max_iter:,} × {cfg.dataloader.train.total_batch_size}",
        f"{row.trained / 1e6:.1f}",
        f"{row.highway / 1e6:.2f}",
        f"{row.share:.2%}",
        *(f"{row.kept[memory]:,.0f}" for memory in MEMORIES),
        *[OPEN] * len(metrics(cfg)),
        OPEN,
    ]
    return f"| {' | '.join(cells)} |"


def table(names: list[str], side: int) -> str:
    """Return the tables, one for each data set and task."""
    tables: dict[str, list[str]] = {}
    for name, cfg, row in rows(names, side):
        lines = tables.setdefault(title(name, cfg), head(metrics(cfg)))
        lines.append(line(name, cfg, row))
        tqdm.write(lines[-1])
    parts = ["\n".join([f"### {heading}", "", *lines]) for heading, lines in tables.items()]
    return "\n\n".join(parts)


def replace_table(readme: Path, text: str, side: int) -> None:
    """Put the tables between the marks of a file.

    Raises:
        UserError: the file does not exist or has no marks.
    """
    if not readme.is_file():
        raise UserError(f"--readme {readme}: no such file")
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"--readme {readme}: expected the lines {BEGIN} and {END} in it")
    note = (
        f"Measured on one image of {side}×{side} pixels in float32, with as many objects as fill\n"
        "the samples of the heads."
    )
    with atomic_open(readme, "w") as file:
        file.write(f"{before}{BEGIN}\n{note}\n\n{text}\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--readme", type=Path, help="file with the tables to replace (default: print only)"
    )
    parser.add_argument("--only", default="*", help="pattern of config names (default: all)")
    parser.add_argument("--side", type=int, default=512, help="side of the image (default: 512)")
    args = parser.parse_args()
    try:
        text = table(config_names(args.only), args.side)
        if args.readme:
            replace_table(args.readme, text, args.side)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
