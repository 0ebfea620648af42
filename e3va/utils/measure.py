"""What trains, and what a step keeps in memory for its backward pass."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

MIB = 2**20
OTHER = "other"


@dataclass
class ParameterRow:
    """Parameters of one part of a model: how many, and how many of them require grad."""

    part: str
    total: int
    trained: int

    @property
    def share(self) -> float:
        """Trained over total, 0 for a part without parameters."""
        return self.trained / self.total if self.total else 0.0


def count_parameters(model: nn.Module, parts: Mapping[str, nn.Module | None]) -> list[ParameterRow]:
    """Count parameters by part; what belongs to no part is the row ``other`` (left out if empty).

    Args:
        parts: disjoint submodules of ``model`` by the name to report; None is skipped.
    """
    rows, seen = [], set()
    for name, module in [*parts.items(), (OTHER, model)]:
        parameters = [p for p in module.parameters() if id(p) not in seen] if module else []
        seen.update(map(id, parameters))
        if parameters or (module is not None and name != OTHER):
            total = sum(p.numel() for p in parameters)
            trained = sum(p.numel() for p in parameters if p.requires_grad)
            rows.append(ParameterRow(name, total, trained))
    return rows


def parameter_table(rows: list[ParameterRow]) -> str:
    """Format rows of :func:`count_parameters`, with a last line for the whole model."""
    whole = ParameterRow("all", sum(r.total for r in rows), sum(r.trained for r in rows))
    lines = [f"{'part':<12}{'parameters':>14}{'trained':>14}{'share':>9}"]
    for row in [*rows, whole]:
        lines.append(f"{row.part:<12}{row.total:>14,}{row.trained:>14,}{row.share:>9.2%}")
    return "\n".join(lines)


@dataclass
class SavedBytes:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters not counted.

    Attributes:
        by_part: bytes by the part in whose forward pass the tensor was first saved.
    """

    by_part: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return sum(self.by_part.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / MIB:,.1f}" for name, size in self.by_part.items())
        return f"{self.total / MIB:,.1f} MiB ({parts})"


@contextmanager
def track_saved_bytes(
    model: nn.Module, parts: Mapping[str, nn.Module | None]
) -> Iterator[SavedBytes]:
    """Measure what the forward passes inside the block keep for their backward pass.

    Storages of the model's parameters and buffers are not counted: they are there anyway. The
    results of autocast's casts are counted: they are kept.

    Args:
        parts: submodules by the name to report; a tensor saved inside none of them is ``other``.
    """
    resident = {_key(t) for t in [*model.parameters(), *model.buffers()]}
    saved: dict[tuple, torch.UntypedStorage] = {}
    result = SavedBytes({name: 0 for name, module in parts.items() if module is not None})
    running: list[str] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        key = _key(tensor)
        if key not in resident and key not in saved:
            # Held until the end, so that a freed address is not taken for the same storage.
            saved[key] = tensor.untyped_storage()
            part = running[-1] if running else OTHER
            result.by_part[part] = result.by_part.get(part, 0) + saved[key].nbytes()
        return tensor.detach()  # an output saved as itself would keep its own graph alive

    with ExitStack() as stack:
        for name, module in parts.items():
            for entry in _entry_points(module):
                stack.enter_context(_mark_running(entry, name, running))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield result


@contextmanager
def _mark_running(module: nn.Module, name: str, running: list[str]) -> Iterator[None]:
    before = module.register_forward_pre_hook(lambda *_: running.append(name))
    after = module.register_forward_hook(lambda *_: running.pop() and None, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _entry_points(module: nn.Module | None) -> Iterator[nn.Module]:
    """The outermost modules that are called: a trunk and a list have no forward of their own."""
    if module is None:
        return
    if type(module).forward is nn.Module.forward:
        for child in module.children():
            yield from _entry_points(child)
    else:
        yield module


def _key(tensor: torch.Tensor) -> tuple:
    return tensor.device, tensor.untyped_storage().data_ptr()


def peak_memory() -> float:
    """Peak memory in MiB: what CUDA allocated for tensors, else the process's resident set
    (0 where the system does not say)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / MIB
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
