"""Part correctness: the device computes what the CPU computes in float64."""

import copy
import itertools
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from e3va import E3VABackbone
from e3va.adapter_files.files import load_adapter, save_adapter
from e3va.highway.config import RECIPES
from e3va.highway.registry import adapter_kinds
from e3va.torchvision.lean import prepare_model

from .part import Part
from .subjects import TORCHVISION_MODELS, autocast, build, frameworks, semantic_loss, train

MEMORIES = ("standard", "lean", "plain")
PRECISIONS = ("fp32", "bf16", "fp16")  # only the first two in short
# The CPU's own error in the same mode and precision is the measure; a card sums in another order
# and convolves in TF32, so errors below these count as none.
FLOOR = {"fp32": 2e-3, "bf16": 1e-2, "fp16": 1e-2}
TIMES = 3.0  # an error up to so many times the CPU's passes
SCALE = 1024.0  # of the loss in float16
PRESET, SIZE = "swin_nano", (2, 3, 96, 128)


def run(part: Part) -> None:
    """Run all checks; the important ones first."""
    # By recipe, so that each has its reference in float64 once.
    for recipe in ("frozen", "e3va_chain") if part.short else RECIPES:
        with part.attempt(f"backbone, {recipe}"):
            _check_backbone(part, recipe, MEMORIES, _precisions(part))
    with part.attempt("operators that wait for the card"):
        _count_waits(part)
    for framework in frameworks():
        with part.attempt(f"semantic FPN, {framework}"):
            _check_semantic(part, framework)
    for model in ("mask_rcnn",) if part.short else TORCHVISION_MODELS:
        with part.attempt(f"torchvision {model}"):
            _check_levels(part, model)
    with part.attempt("adapter files between CPU and device"):
        _check_files(part)
    with part.attempt("training and resuming"):
        _check_training(part)
    with part.attempt("one process of a group"):
        _check_group(part)
    for kind in () if part.short else adapter_kinds():
        if part.out_of_time(5):
            part.record("notes", text=f"adapter kinds from {kind} on: no time left")
            break
        with part.attempt(f"adapter kind {kind}"):
            options = {"rank": 8} if "rank" in adapter_kinds()[kind].defaults else {}
            highway = {"adapter": kind, **options}
            _check_backbone(part, highway, ("standard",), ("fp32",))


def _backbone(highway, memory: str) -> E3VABackbone:
    torch.manual_seed(0)
    backbone = E3VABackbone(PRESET, highway, memory=memory)
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        spread = 0.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
        noise = spread * torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(noise + (parameter.dim() == 1))
    return backbone.train()


def _results(backbone: nn.Module, images: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Return outputs and gradients, each as one vector of float64 on the CPU."""
    scale = SCALE if precision == "fp16" else 1.0
    with autocast(images.device, precision):
        outputs = list(backbone(images).values())
    loss = sum((out.double() * out.detach().double().cos()).mean() for out in outputs)
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(scale * loss, parameters)
    return _flat(outputs), _flat(gradients) / scale


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten().double().cpu() for t in tensors])


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def _precisions(part: Part) -> tuple[str, ...]:
    return PRECISIONS[:2] if part.short else PRECISIONS


def _check_backbone(part: Part, highway, memories, precisions) -> None:
    images = torch.rand(SIZE, generator=torch.Generator().manual_seed(2))
    exact = _results(_backbone(highway, "plain").double(), images.double(), "fp32")
    for memory, precision in itertools.product(memories, precisions):
        errors = []
        for device in (torch.device("cpu"), part.device):
            backbone = _backbone(highway, memory).to(device)
            backbone.prepare(precision != "fp32")
            found = _results(backbone, images.to(device), precision)
            errors.append([_error(*pair) for pair in zip(found, exact, strict=True)])
        for name, on_cpu, on_device in zip(("outputs", "gradients"), *errors, strict=True):
            limit = max(FLOOR[precision], TIMES * on_cpu)
            what = f"backbone, {_name(highway)}, {memory}, {precision}: {name}"
            part.check(what, on_device, limit)


def _name(highway) -> str:
    return highway if isinstance(highway, str) else highway["adapter"]


def _check_semantic(part: Part, framework: str) -> None:
    """Compare the loss and all gradients of a model without random sampling."""
    cpu = torch.device("cpu")
    exact = _semantic(framework, cpu, "fp32", exact=True)
    for precision in _precisions(part):
        errors = []
        for device in (cpu, part.device):
            found = _semantic(framework, device, precision)
            errors.append([_error(*pair) for pair in zip(found, exact, strict=True)])
        for name, on_cpu, on_device in zip(("loss", "gradients"), *errors, strict=True):
            what = f"semantic FPN, {framework}, {precision}: {name}"
            part.check(what, on_device, max(FLOOR[precision], TIMES * on_cpu))


def _semantic(
    framework: str, device: torch.device, precision: str, exact: bool = False
) -> tuple[Tensor, Tensor]:
    model = build(framework, "semantic_fpn").train()
    if exact:
        model.double()
    model.to(device)
    if not exact:
        prepare_model(model, precision != "fp32")
    loss = semantic_loss(framework, model, device, precision)
    scale = SCALE if precision == "fp16" else 1.0
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(scale * loss, parameters)
    return _flat([loss]), _flat(gradients) / scale


def _check_levels(part: Part, model: str) -> None:
    """Compare the feature pyramid of a model, whose heads sample at random."""
    images = torch.rand(SIZE, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    built = build("torchvision", model).eval()
    twin = copy.deepcopy(built).to(part.device)
    with torch.no_grad():
        exact = built.double().backbone(images.double())
        found = twin.backbone(images.to(part.device))
    error = _error(_flat(list(found.values())), _flat(list(exact.values())))
    part.check(f"torchvision {model}: feature pyramid", error, FLOOR["fp32"])
    picture = images[0].to(part.device)
    results = twin([picture])
    on_device = all(v.device.type == part.device.type for v in results[0].values())
    part.check(f"torchvision {model}: predictions on another device", float(not on_device), 0)


def _count_waits(part: Part) -> None:
    """Count the operators of trunk and highway for which the host waits."""
    if not part.cuda:
        part.record("notes", text="waits for the card are counted on CUDA only")
        return
    for recipe, memory in itertools.product(("frozen", "e3va_chain"), ("standard", "lean")):
        backbone = _backbone(recipe, memory).to(part.device)
        backbone.prepare(mixed=True)
        for number, size in enumerate(((96, 128), (96, 128), (64, 160))):
            images = torch.rand(2, 3, *size, device=part.device)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    with autocast(part.device, part.half):
                        outputs = backbone(images)
                    sum(out.float().mean() for out in outputs.values()).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            waits = sum("synchroniz" in str(w.message) for w in caught)
            which = ("first pass", "same size again", "another size")[number]
            part.record("waits", what=f"{recipe}, {memory}: {which}", waits=waits)
            if number == 1:
                part.check(f"waits for the card, {recipe}, {memory}, same size again", waits, 0)


def _check_files(part: Part) -> None:
    """Save adapters on one device and load them on the other."""
    images = torch.rand(SIZE, generator=torch.Generator().manual_seed(2))
    cpu = torch.device("cpu")
    for source, target in ((part.device, cpu), (cpu, part.device)):
        one = _backbone("e3va_chain", "standard").to(source)
        two = E3VABackbone(PRESET, "e3va_chain")
        two.trunk.load_state_dict(one.trunk.state_dict())
        two = two.to(target)
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(one, Path(folder) / "adapter")
            load_adapter(two, Path(folder) / "adapter")
        with torch.no_grad():
            pair = [
                _flat(list(m(images.to(d)).values())) for m, d in ((one, source), (two, target))
            ]
        part.check(f"adapters from {source.type} to {target.type}", _error(*pair), FLOOR["fp32"])


def _check_training(part: Part) -> None:
    """Train, stop in the middle, resume, and compare with a training without a stop."""
    with tempfile.TemporaryDirectory() as folder:
        whole, halves = Path(folder) / "whole", Path(folder) / "halves"
        data = Path(folder) / "data"
        expected = train(part.device, data, whole)
        train(part.device, data, halves, stop=True)
        resumed = train(part.device, data, halves, resume=True)
    names = [name for name, tensor in expected.items() if tensor.is_floating_point()]
    pair = [_flat([state[name] for name in names]) for state in (resumed, expected)]
    # On a card sums of gradients are not in a fixed order, so the last bits differ.
    part.check("resumed training beside an uninterrupted one", _error(*pair), 1e-3)


def _check_group(part: Part) -> None:
    """Run a step in a process group of one, with NCCL on CUDA."""
    import torch.distributed as dist

    with tempfile.NamedTemporaryFile() as file:
        backend = "nccl" if part.cuda else "gloo"
        dist.init_process_group(backend, init_method=f"file://{file.name}", rank=0, world_size=1)
        try:
            backbone = _backbone("e3va_chain", "standard").to(part.device)
            ids = [part.device.index or 0] if part.cuda else None
            model = nn.parallel.DistributedDataParallel(backbone, device_ids=ids)
            out = model(torch.rand(SIZE, device=part.device))
            sum(o.mean() for o in out.values()).backward()
            missing = sum(p.grad is None for p in backbone.highway.parameters())
            part.check(f"parameters without a gradient in a group ({backend})", missing, 0)
        finally:
            dist.destroy_process_group()
