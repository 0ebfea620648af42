"""One model in several processes: what crosses between them, and that they begin alike."""

import warnings
from collections.abc import Iterable, Mapping

import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import Tensor, nn

from ..utils.errors import UserError
from ..weights.origin import fingerprint
from .lean import leave_trunk_out_of_ddp


def share_model(model: nn.Module, device: str, ddp: Mapping[str, object]) -> nn.Module:
    """Put a model into DistributedDataParallel; with one process, give it back as it is.

    Gradients of trained parameters alone cross between processes, once a step. A frozen trunk is
    unknown to DistributedDataParallel; every process loads its weights from the same file, which
    :func:`check_same_start` proves.

    Args:
        model: a Detectron2 model on its device, its trained parts chosen.
        device: ``"cuda"`` or ``"cpu"``.
        ddp: further arguments of :func:`detectron2.engine.defaults.create_ddp_model`.
    """
    if comm.get_world_size() == 1:
        return model
    ddp = dict(ddp)
    if torch.device(device).type != "cuda":
        ddp["device_ids"] = None
        _sync_norms_without_cuda(model)
    leave_trunk_out_of_ddp(model)
    with warnings.catch_warnings():
        # torch's, that broadcast_buffers will get another name.
        warnings.simplefilter("ignore", FutureWarning)
        return create_ddp_model(model, **ddp)


def _sync_norms_without_cuda(model: nn.Module) -> None:
    """torch's SyncBatchNorm runs on CUDA alone; Detectron2's gives the same means elsewhere, as
    long as maps are of one size, which those of ROI heads are."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) is nn.SyncBatchNorm:
                own = NaiveSyncBatchNorm(
                    norm.num_features, norm.eps, norm.momentum, norm.affine, stats_mode="N"
                ).train(norm.training)
                # The same objects: the optimizer knows them.
                own._parameters, own._buffers = norm._parameters, norm._buffers
                setattr(parent, name, own)


def check_same_start(model: nn.Module, trunk: nn.Module, iteration: int) -> None:
    """Prove that all processes begin with the same iteration and weights.

    Each reads its files itself, so that on machines without a shared disk they could differ.

    Args:
        model: the model, not inside DistributedDataParallel.
        trunk: the trunk in it.
        iteration: the one that comes first.

    Raises:
        UserError: in every process; it names those that differ from the first.
    """
    if comm.get_world_size() == 1:
        return
    known = {id(tensor) for tensor in _tensors(trunk).values()}
    rest = {name: value for name, value in _tensors(model).items() if id(value) not in known}
    own = (iteration, fingerprint(_tensors(trunk)), fingerprint(rest))
    told = comm.all_gather(own)
    differing = [rank for rank, other in enumerate(told) if other[0] != told[0][0]]
    if differing:
        raise UserError(
            f"{_processes(differing)} would begin with iteration "
            f"{', '.join(map(str, sorted({told[rank][0] for rank in differing})))}, process 0 with "
            f"{told[0][0]}: expected the same checkpoint in train.output_dir of every machine; "
            "put it on a shared disk, or copy it to them"
        )
    for place, what in ((1, "trunk"), (2, "highway, neck and heads")):
        differing = [rank for rank, other in enumerate(told) if other[place] != told[0][place]]
        if differing:
            raise UserError(
                f"the weights of the {what} in {_processes(differing)} are not those of process 0 "
                f"(fingerprints {told[differing[0]][place][:16]} and {told[0][place][:16]}): "
                "expected the same files of weights on every machine"
            )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _processes(ranks: Iterable[int]) -> str:
    ranks = list(ranks)
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
