"""Compare what two checkouts of this project compute from the same weights, seeds and data.

    python benchmarks/same_results.py OLD NEW [--output benchmarks/results/same_results]

Runs the same small work in both checkouts, each in a process of its own: a cascade Mask R-CNN and a
semantic FPN, in torchvision and Detectron2, with two recipes and every memory mode. Each model
starts from the weights that OLD drew. The script compares the pyramid and the predictions, the
losses of five steps, the gradients of the first step, and the weights after the five steps. The
criterion: equal to the bit with memory "plain", to 1e-6 of a tensor's largest value otherwise. The
exit status is 1 if a difference is larger. Takes about a minute on one core.
"""

import argparse
import inspect
import itertools
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FRAMEWORKS = ("torchvision", "detectron2")
MODELS = ("cascade_mask_rcnn", "semantic_fpn")
RECIPES = {"e3va_chain": "e3va", "e3va": "paper"}  # today's recipe: its name in version 0.1
MEMORY = ("plain", "standard", "lean")
MEASURED = ("outputs", "losses", "gradients", "weights")
TOLERANCE = 1e-6  # of the largest value of a tensor
STEPS, CLASSES = 5, 3
SIZES = ((96, 112), (88, 96))  # pixels of the two images, height and width


@dataclass(frozen=True)
class Case:
    """A model to compare."""

    framework: str
    model: str
    recipe: str
    memory: str

    def __str__(self) -> str:
        return "-".join((self.framework, self.model, self.recipe, self.memory))


CASES = tuple(Case(*values) for values in itertools.product(FRAMEWORKS, MODELS, RECIPES, MEMORY))


def highway_argument(function: Callable, recipe: str) -> dict[str, str]:
    """Return the argument that selects a recipe in the checkout that is imported."""
    if "method" in inspect.signature(function).parameters:
        return {"method": RECIPES[recipe]}
    return {"highway": recipe}


def targets() -> Iterator[dict[str, Tensor]]:
    """Draw the images of a batch with their boxes, masks and label maps."""
    generator = torch.Generator().manual_seed(7)
    for height, width in SIZES:
        image = torch.rand(3, height, width, generator=generator)
        boxes = torch.tensor([[8.0, 6.0, 44.0, 50.0], [30.0, 24.0, 90.0, 80.0]])
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int(), strict=True):
            mask[top + 4 : bottom - 4, left:right] = True
        labels = torch.randint(0, CLASSES, (height // 8, width // 8), generator=generator)
        labels = labels.repeat_interleave(8, 0).repeat_interleave(8, 1)
        yield {"image": image, "boxes": boxes, "masks": masks, "labels": labels}


class Torchvision:
    """The models of e3va.torchvision."""

    def __init__(self, case: Case, root: Path):
        from e3va import get_preset
        from e3va.torchvision import ModelConfig, build_model

        config = ModelConfig(
            model=case.model,
            classes=tuple(f"class {n}" for n in range(CLASSES)),
            preset=get_preset("swin_nano"),
            trunk="random",
            memory=case.memory,
            heads="light",
            size=96,
            max_size=160,
            **highway_argument(ModelConfig, case.recipe),
        )
        self.model = build_model(config)

    def prepare(self) -> None:
        """Convert the model to the form in which it trains."""
        from e3va.torchvision.lean import prepare_model

        prepare_model(self.model, mixed=False)

    def losses(self) -> dict[str, Tensor]:
        """Run the model forward in training mode."""
        kinds = {"boxes": torch.float32, "masks": torch.uint8, "labels": torch.int64}
        batch = [{k: t[k].to(dtype) for k, dtype in kinds.items()} for t in targets()]
        if hasattr(self.model, "roi_heads"):
            batch = [{**target, "labels": torch.tensor([1, 2])} for target in batch]
        return self.model([target["image"] for target in targets()], batch)

    def predictions(self) -> list[dict[str, Tensor]]:
        """Run the model forward in evaluation mode."""
        return self.model([target["image"] for target in targets()])


class Detectron2:
    """The models of the LazyConfig files."""

    def __init__(self, case: Case, root: Path):
        from detectron2.config import LazyConfig, instantiate

        from e3va.detectron2 import E3VASwin

        cfg = LazyConfig.load(str(root / "configs/common/models" / f"{case.model}.py")).model
        bottom_up = cfg.backbone.bottom_up
        bottom_up.preset, bottom_up.memory = "swin_nano", case.memory
        if "method" in bottom_up:
            bottom_up.update(highway_argument(E3VASwin.__init__, case.recipe))
        else:
            bottom_up.highway.recipe = case.recipe
        cfg.backbone.out_channels = 16
        if case.model == "semantic_fpn":
            cfg.sem_seg_head.conv_dims, cfg.sem_seg_head.num_classes = 32, CLASSES
        else:
            self._narrow(cfg.proposal_generator, cfg.roi_heads)
        self.model = instantiate(cfg)

    @staticmethod
    def _narrow(rpn: Any, roi_heads: Any) -> None:
        rpn.head.in_channels, rpn.post_nms_topk = 16, [30, 30]
        roi_heads.num_classes, roi_heads.batch_size_per_image = CLASSES, 16
        roi_heads.mask_head.input_shape.channels, roi_heads.mask_head.conv_dims = 16, [16, 16]
        for head, predictor in zip(roi_heads.box_heads, roi_heads.box_predictors, strict=True):
            head.input_shape.channels, head.fc_dims = 16, [32]
            predictor.input_shape.channels = 32

    def prepare(self) -> None:
        """Convert the model to the form in which it trains."""
        from e3va.detectron2.lean import prepare_model

        prepare_model(self.model, mixed=False)

    def _batch(self) -> list[dict[str, Any]]:
        from detectron2.structures import BitMasks, Boxes, Instances

        batch = []
        for target in targets():
            instances = Instances(tuple(target["image"].shape[1:]))
            instances.gt_boxes = Boxes(target["boxes"])
            instances.gt_masks = BitMasks(target["masks"])
            instances.gt_classes = torch.tensor([0, 1])
            image = 255 * target["image"]
            batch.append({"image": image, "instances": instances, "sem_seg": target["labels"]})
        return batch

    def losses(self) -> dict[str, Tensor]:
        """Run the model forward in training mode."""
        from detectron2.utils.events import EventStorage

        with EventStorage(0):
            return self.model(self._batch())

    def predictions(self) -> list[dict[str, Any]]:
        """Run the model forward in evaluation mode."""
        results = []
        for result in self.model([{"image": target["image"]} for target in self._batch()]):
            if "instances" in result:
                fields = result["instances"].get_fields()
                fields["pred_boxes"] = fields["pred_boxes"].tensor
                result = {**result, "instances": fields}
            results.append(result)
        return results


def seed(number: int) -> None:
    """Seed every generator that a model may draw from."""
    random.seed(number)
    torch.manual_seed(number)


def flat(value: Any, name: str = "") -> dict[str, Tensor]:
    """Return the tensors inside nested lists and dicts, by their paths."""
    if isinstance(value, Tensor):
        return {name: value.detach().clone()}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: t for key, entry in entries for k, t in flat(entry, f"{name}.{key}").items()}


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the trained parameters: adapters at a higher learning rate, as the trainers do."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    adapters = [p for n, p in trained.items() if ".highway." in n and ".out_norm." not in n]
    others = [p for n, p in trained.items() if ".highway." not in n or ".out_norm." in n]
    return [{"params": adapters, "lr": 8e-3}, {"params": others, "lr": 1e-3}]


def start_weights(model: nn.Module, path: Path) -> None:
    """Load the weights of a file; the first checkout writes it.

    Adapters start as the identity. The file has random numbers instead of zeros, so that the
    adapters take part in the outputs of the first step.
    """
    if not path.exists():
        state = model.state_dict()
        for name, tensor in state.items():
            if ".highway." in name and ".out_norm." not in name and not tensor.any():
                tensor.copy_(torch.randn(tensor.shape) / 20)
        torch.save(state, path)
    model.load_state_dict(torch.load(path))


def measure(case: Case, root: Path, weights: Path) -> dict[str, dict[str, Tensor]]:
    """Build a model, take five steps, and return what is compared."""
    seed(0)
    built = {"torchvision": Torchvision, "detectron2": Detectron2}[case.framework](case, root)
    model = built.model
    start_weights(model, weights)
    built.prepare()
    model.eval()
    with torch.no_grad():
        pyramid = model.backbone(torch.stack([t["image"][:, :64, :96] for t in targets()]))
        outputs = {"pyramid": pyramid, "predictions": built.predictions()}
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model), weight_decay=0.05)
    losses, gradients = [], {}
    for step in range(STEPS):
        seed(step)
        optimizer.zero_grad()
        losses.append(built.losses())
        sum(losses[-1].values()).backward()
        if not step:
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            gradients = flat(gradients)
        optimizer.step()
    found = {"outputs": outputs, "losses": losses, "weights": dict(model.state_dict())}
    return {**{name: flat(value) for name, value in found.items()}, "gradients": gradients}


def work(root: Path, shared: Path, results: Path) -> None:
    """Measure every case in the checkout that is imported, and write the results."""
    import e3va

    if not Path(e3va.__file__).resolve().is_relative_to(root):
        sys.exit(f"imported {e3va.__file__}: expected the checkout {root}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.save({str(c): measure(c, root, shared / f"{c}.pth") for c in CASES}, results)


def run(root: Path, shared: Path, results: Path) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Run :func:`work` in a checkout, in a process of its own."""
    command = [sys.executable, "-P", "-W", "ignore", str(Path(__file__).resolve()), "--work"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(root), shared, results], cwd=root, env=environment, check=True)
    return torch.load(results)


def difference(old: dict[str, Tensor], new: dict[str, Tensor]) -> float:
    """Return the largest difference of two sets of tensors, relative to each tensor's largest.

    Infinity stands for no tensors at all, or other names, shapes or types.
    """
    if not old or old.keys() != new.keys():
        return float("inf")
    worst = 0.0
    for name, a in old.items():
        b = new[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if a.numel() and not torch.equal(a, b):
            largest = a.double().abs().max().clamp(min=1e-30)
            worst = max(worst, float((a.double() - b.double()).abs().max() / largest))
    return worst


def compare(old: dict, new: dict) -> tuple[list[str], bool]:
    """Return the lines of the table, and whether every case meets the criterion."""
    lines = [f"| framework | model | recipe | memory | {' | '.join(MEASURED)} | criterion |"]
    lines.append("|---|---|---|---|" + "---:|" * len(MEASURED) + "---|")
    passed = True
    for case in CASES:
        pairs = [(old[str(case)][name], new[str(case)][name]) for name in MEASURED]
        found = [difference(*pair) for pair in pairs]
        limit = 0.0 if case.memory == "plain" else TOLERANCE
        met = all(value <= limit for value in found)
        passed &= met
        cells = [case.framework, case.model, case.recipe, case.memory]
        cells += ["equal to the bit" if value == 0 else f"{value:.1e}" for value in found]
        lines.append(f"| {' | '.join(cells)} | {'met' if met else 'NOT MET'} |")
    return lines, passed


def commit(root: Path) -> str:
    """Return the commit of a checkout, and whether files differ from it."""
    git = ["git", "-C", str(root)]
    done = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or str(root)


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD", help="checkout to compare with")
    parser.add_argument("new", type=Path, metavar="NEW", help="checkout to compare")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for same_results.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder)
        roots = args.old.resolve(), args.new.resolve()
        old, new = (run(root, shared, shared / f"results{n}") for n, root in enumerate(roots))
    lines, passed = compare(old, new)
    print("\n".join(lines))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        about = (
            f"Largest differences between {commit(roots[0])} (old) and {commit(roots[1])} (new), "
            "relative to the largest value of each tensor.\nPrinted by "
            f"`python benchmarks/same_results.py OLD NEW`, torch {torch.__version__}.\n"
        )
        text = "\n".join([about, *lines, ""])
        (args.output / "same_results.md").write_text(text, encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        warnings.simplefilter("ignore")
        work(*map(Path, sys.argv[2:]))
    else:
        sys.exit(main())
