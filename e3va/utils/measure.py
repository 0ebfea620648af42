"""Measurements: trained parameters, memory for the backward pass, peak memory."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

MIB = 2**20
OTHER = "other"


@dataclass
class ParameterRow:
    """The numbers of all and of trained parameters in one part of a model."""

    part: str
    total: int
    trained: int

    @property
    def share(self) -> float:
        """Share of the trained parameters; 0 for a part without parameters."""
        return self.trained / self.total if self.total else 0.0


def count_parameters(model: nn.Module, parts: Mapping[str, nn.Module | None]) -> list[ParameterRow]:
    """Count the parameters of disjoint submodules by name, and of the rest as ``other``.

    A submodule that is None gets no row, nor does an empty rest.
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
    """Format the result of :func:`count_parameters` with a last line for the whole model."""
    whole = ParameterRow("all", sum(r.total for r in rows), sum(r.trained for r in rows))
    lines = [f"{'part':<12}{'parameters':>14}{'trained':>14}{'share':>9}"]
    for row in [*rows, whole]:
        lines.append(f"{row.part:<12}{row.total:>14,}{row.trained:>14,}{row.share:>9.2%}")
    return "\n".join(lines)


@dataclass
class SavedBytes:
    """Bytes that autograd keeps for the backward pass, without parameters, each storage once."""

    by_part: dict[str, int]  # by the part that was running when a tensor was first saved

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
    """Measure the memory that forward passes in the block keep for their backward pass.

    The parameters and buffers of ``model`` are not counted. Copies that autocast makes of them are.
    Tensors that are saved in none of the submodules ``parts`` are counted as ``other``.
    """
    resident = {_key(t) for t in [*model.parameters(), *model.buffers()]}
    saved: dict[tuple, torch.UntypedStorage] = {}
    result = SavedBytes({name: 0 for name, module in parts.items() if module is not None})
    running: list[str] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        key = _key(tensor)
        if key not in resident and key not in saved:
            # The storage is held to the end, so that no other storage gets the same address.
            saved[key] = tensor.untyped_storage()
            part = running[-1] if running else OTHER
            result.by_part[part] = result.by_part.get(part, 0) + saved[key].nbytes()
        return tensor.detach()  # an output that is saved as itself would keep its own graph alive

    with ExitStack() as stack:
        for name, module in parts.items():
            for entry in _entry_points(module):
                before = entry.register_forward_pre_hook(lambda *_, name=name: running.append(name))
                after = entry.register_forward_hook(
                    lambda *_: running.pop() and None, always_call=True
                )
                stack.callback(before.remove)
                stack.callback(after.remove)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield result


def _entry_points(module: nn.Module | None) -> Iterator[nn.Module]:
    """Yield the outermost modules with a forward method; a trunk and a list have none."""
    if module is None:
        return
    if type(module).forward is not nn.Module.forward:
        yield module
        return
    for child in module.children():
        yield from _entry_points(child)


def _key(tensor: torch.Tensor) -> tuple:
    return tensor.device, tensor.untyped_storage().data_ptr()


def peak_memory() -> float:
    """Return the peak memory in MiB: CUDA's for tensors, else that of the process; 0 if unknown."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / MIB
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
