"""One model in several processes: what they exchange, and that they start alike."""

import warnings
from collections.abc import Mapping

import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..backbone import find_backbone, trunk_prefix
from ..utils.errors import UserError
from ..weights.origin import fingerprint

# What must be equal in all processes, and what it is read from.
_STARTS = {
    "iteration": "checkpoint in train.output_dir",
    "weights of the trunk": "files of weights",
    "weights of highway, neck and heads": "files",
}


def share_model(model: nn.Module, device: str, ddp: Mapping[str, object]) -> nn.Module:
    """Put a model into DistributedDataParallel; with one process, return it unchanged.

    ``ddp`` holds further arguments of :func:`detectron2.engine.defaults.create_ddp_model`.
    """
    if comm.get_world_size() == 1:
        return model
    ddp = dict(ddp)
    if torch.device(device).type != "cuda":
        ddp["device_ids"] = None
        _sync_norms_without_cuda(model)
    hide_trunk_from_ddp(model)
    with warnings.catch_warnings():
        # torch's, that broadcast_buffers will get another name.
        warnings.simplefilter("ignore", FutureWarning)
        return create_ddp_model(model, **ddp)


def _sync_norms_without_cuda(model: nn.Module) -> None:
    """Replace torch's SyncBatchNorm, which needs CUDA, by Detectron2's: the same for equal maps."""
    for name, norm in list(model.named_modules()):
        if type(norm) is nn.SyncBatchNorm:
            settings = (norm.num_features, norm.eps, norm.momentum, norm.affine)
            own = NaiveSyncBatchNorm(*settings, stats_mode="N").train(norm.training)
            # The same objects, which the optimizer holds.
            own._parameters, own._buffers = norm._parameters, norm._buffers
            model.set_submodule(name, own)


def hide_trunk_from_ddp(model: nn.Module) -> None:
    """Hide a frozen trunk from DistributedDataParallel, and copy the first process's to the others.

    DistributedDataParallel keeps a reference to every parameter that it sees, so the weights that
    :func:`e3va.detectron2.lean.prepare_model` replaces would stay in memory.
    """
    trunk = find_backbone(model)[1].trunk
    if not trunk.frozen:
        return
    own = _tensors(trunk)
    for tensor in own.values():
        torch.distributed.broadcast(tensor.detach(), 0)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model, [trunk_prefix(model) + name for name in own]
    )


def check_same_start(model: nn.Module, trunk: nn.Module, iteration: int) -> None:
    """Check that all processes, each with its own files, start with equal iteration and weights."""
    if comm.get_world_size() == 1:
        return
    in_trunk = {id(tensor) for tensor in _tensors(trunk).values()}
    rest = {name: value for name, value in _tensors(model).items() if id(value) not in in_trunk}
    starts = comm.all_gather((iteration, fingerprint(_tensors(trunk)), fingerprint(rest)))
    for found, (what, advice) in zip(zip(*starts, strict=True), _STARTS.items(), strict=True):
        for rank, value in enumerate(found):
            if value != found[0]:
                raise UserError(
                    f"process {rank} starts with another {what} than process 0 "
                    f"({str(value)[:16]}, not {str(found[0])[:16]}): expected the same {advice} on "
                    "every machine; use a shared disk, or copy the files"
                )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
