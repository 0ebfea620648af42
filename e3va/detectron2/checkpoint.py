"""Detectron2's checkpointer, with files that a crash cannot damage and clear errors."""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from torch import nn

from ..adapter_files.description import AdapterConfig, describe_model
from ..adapter_files.files import FULL_KEY, apply_adapter, is_adapter, read_adapter, recorded_origin
from ..adapter_files.heads import smallest_anchor
from ..adapter_files.trunk import build_trunk
from ..backbone import find_backbone, trunk_prefix
from ..model_zoo.resolve import local_path, pinned
from ..model_zoo.rows import SCHEMES
from ..model_zoo.trunks import find_trunk_of
from ..swin.trunk import SwinTrunk
from ..utils.atomic import atomic_open, remove_leftovers, save_atomically
from ..utils.errors import UserError, check_choice
from ..weights.checkpoint import load_file, model_state
from ..weights.loading import (
    check_trunk,
    find_trunk,
    load_trunk,
    missing_trunk,
    source_name,
    trunk_state,
)
from ..weights.origin import TrunkOrigin, fingerprint
from .describe import FRAMEWORK

logger = logging.getLogger(__name__)


def local_weights(path: str | os.PathLike) -> str:
    """Return the local path of weights and Detectron2's query; download what an address names."""
    path = str(path)
    if not path.startswith(SCHEMES):
        return path
    address, *query = path.partition("?")
    return str(local_path(address)) + "".join(query)


def pinned_weights(path: str | os.PathLike) -> str:
    """Return a path with its query; an address on the hub gets its commit."""
    address, *query = str(path).partition("?")
    return pinned(address) + "".join(query)


def find_weights(path: str | os.PathLike) -> str:
    """Return :func:`local_weights`; raise UserError if there is neither a file nor an adapter."""
    local = local_weights(path)
    found = is_adapter(local) or "://" in local or os.path.isfile(local.partition("?")[0])
    if local and not found:
        raise UserError(
            f"no weights file {path}: expected a .pth or .safetensors file, or an adapter's "
            "folder; check the path"
        )
    return local


class HighwayCheckpointer(DetectionCheckpointer):
    """Checkpointer for whole models, pretrained Swin weights and adapters; it saves atomically.

    ``DefaultPredictor`` and Detectron2's training script read its files; no code in a file runs.

    Args:
        model: a Detectron2 model with an E³VA backbone.
        save_dir: folder of the checkpoints.
        about: description of the model for its checkpoints, see
            :func:`e3va.detectron2.describe.describe_config`.
        trunk: file or address of an adapter's trunk; ``""`` to look for it where the
            adapter says.
        adapter_parts: parts of an adapter to load: ``"all"``, or ``"backbone"`` for its highway
            without neck and heads.
        any_trunk: whether to load an adapter on a trunk with other weights than it was trained on.
        checkpointables: further objects to save, see Detectron2's class.

    Attributes:
        adapter: the description of the adapter that was loaded last, or None.

    Raises:
        UserError: another value of ``adapter_parts``, or a model without an E³VA backbone.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        about: Mapping[str, Any] | None = None,
        trunk: str | os.PathLike | None = None,
        adapter_parts: str = "all",
        any_trunk: bool = False,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        check_choice("train.adapter_parts", adapter_parts, ("all", "backbone"))
        self.adapter: AdapterConfig | None = None
        self._about = dict(about or {"framework": FRAMEWORK})
        self._given_trunk = str(trunk or "")
        self._backbone_only = adapter_parts == "backbone"
        self._any_trunk = any_trunk
        self._source = ""
        self._prefix = trunk_prefix(self.model)
        self._trunk = find_backbone(self.model)[1].trunk

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth``, then name it in ``last_checkpoint``, both atomically."""
        if not self.save_dir or not self.save_to_disk:
            return
        remove_leftovers(self.save_dir)
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **parts, **kwargs}
        if self._trunk.frozen:
            steps = kwargs["iteration"] + 1 if "iteration" in kwargs else None
            data[FULL_KEY] = describe_model(self.model, **{"steps": steps, **self._about}).to_dict()
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        save_atomically(data, path)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest checkpoint in ``last_checkpoint``, atomically."""
        with atomic_open(os.path.join(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load a whole model, a pretrained Swin into the trunk, or an adapter with its trunk.

        ``path`` is a file, an adapter's folder, an ``e3va://`` or ``hf://`` address, or a path that
        Detectron2's path manager reads.

        Raises:
            UserError: the file is missing or damaged, has no trunk or one of another size, or is
                an adapter that does not fit or lacks its trunk. The model does not change then.
        """
        self._source = pinned_weights(path)
        local = find_weights(self._source)
        if local and is_adapter(local):
            self._load_adapter(Path(local))
            return {}
        return super().load(local, checkpointables)

    def _load_adapter(self, path: Path) -> None:
        state, description = read_adapter(path)
        backbone = find_backbone(self.model)[1]
        description.check_backbone(backbone, self._source, self._backbone_only)
        if description.framework == "torchvision" and not self._backbone_only:
            _check_anchors_and_pooling(self.model, description, self._source)
        trunk = self._trunk_of(description, path if path.is_dir() else path.parent)
        try:
            apply_adapter(
                *(self.model, state, description, self._source),
                backbone_only=self._backbone_only,
                any_trunk=True,  # _trunk_of has checked it
                framework=FRAMEWORK,
            )
        except UserError as error:
            names = description.classes
            classes = f" (classes: {', '.join(names)})" if names else ""
            raise UserError(f"{error.line} with train.adapter_parts=backbone{classes}") from None
        if trunk is not self._trunk:
            self._trunk.load_state_dict(trunk.state_dict())
            self._trunk.origin = trunk.origin
        self.adapter = description
        self._report(description)

    def _trunk_of(self, description: AdapterConfig, folder: Path) -> SwinTrunk:
        """Return the trunk of an adapter: the model's own, or a new one if weights differ."""
        wanted, own = description.trunk, self._trunk
        # A training that starts from an adapter rounds the weights itself.
        stored = "fp32" if self.checkpointables else wanted.stored
        if own.origin is not None and own.origin.fingerprint == wanted.fingerprint:
            if own.origin.stored != "fp32" or stored == "fp32":
                warn_of_rounding(own, description, self._source)
                return own
            state, source = own.state_dict(), wanted.source
        else:
            state, source = find_trunk_of(description, self._given_trunk or None, folder)
        options = {"adapter": self._source, "any_trunk": self._any_trunk, "stored": stored}
        trunk = build_trunk(description, state, source, **options)
        if trunk.origin.fingerprint == wanted.fingerprint:
            trunk.origin = replace(wanted, stored=stored)
        else:
            text = "%s was trained on the trunk %s (fingerprint %s), not on %s (fingerprint %s)"
            names = (wanted.source, wanted.short, trunk.origin.source, trunk.origin.short)
            self.logger.warning(text, self._source, *names)
        return trunk

    def _report(self, description: AdapterConfig) -> None:
        what = "the highway" if self._backbone_only else "highway, neck and heads"
        text = "Loaded %s of the adapter %s, on the trunk %s"
        self.logger.info(text, what, self._source, description.trunk.source)
        ours, theirs = self._about.get("classes"), description.classes
        if ours and theirs and not self._backbone_only and (*ours,) != theirs:
            self.logger.warning(
                "%s has the classes %s, but this config has %s: output k of the adapter becomes "
                "class k of this config",
                *(self._source, ", ".join(theirs), ", ".join(ours)),
            )

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """Resume from the last checkpoint, or load ``path``, as Detectron2's class."""
        if resume and self.has_checkpoint() and not os.path.isfile(self.get_checkpoint_file()):
            raise UserError(
                f"{self.save_dir}/last_checkpoint names {self.get_checkpoint_file()}, which does "
                "not exist: put the file back, or delete last_checkpoint to start anew"
            )
        return super().resume_or_load(path, resume=resume)

    def _load_file(self, filename: str) -> dict:
        # Detectron2 unpickles .pkl and .pyth files, which can execute code.
        if filename.endswith((".pkl", ".pyth")):
            return load_file(filename)
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict:
        return load_file(f)

    def _load_model(self, checkpoint: dict) -> Any:
        if checkpoint.get("matching_heuristics", False):
            return self._load_by_heuristics(checkpoint)
        state = model_state(checkpoint, self._source)
        prefix = find_trunk(state, self._source)
        if prefix is None:
            raise missing_trunk(state, self._source)
        if prefix == self._prefix:
            check_trunk(self._trunk, trunk_state(state, prefix), self._source)
            origin = recorded_origin(checkpoint)
            incompatible = super()._load_model({**checkpoint, "model": state})
            self._trunk.origin = origin
            return incompatible
        loaded = load_trunk(self._trunk, state, self._source)
        text = "Loaded a pretrained trunk: %d tensors of %s"
        self.logger.info(text, loaded.tensors, self._source)
        for note in loaded.notes:
            self.logger.info("%s: %s", self._source, note)
        self._load_rest(state, prefix)
        return None

    def _load_by_heuristics(self, checkpoint: dict) -> Any:
        origin = recorded_origin(checkpoint)
        incompatible = super()._load_model(checkpoint)
        if not any(key.startswith(self._prefix) for key in incompatible.missing_keys):
            name = self._source.partition("?")[0]
            own = TrunkOrigin(source_name(name), fingerprint(self._trunk.state_dict()))
            self._trunk.origin = origin or own
        return incompatible

    def _load_rest(self, state: Mapping[str, Any], prefix: str) -> None:
        """Load neck and heads of another Swin detector where their names fit."""
        own = self.model.state_dict() if prefix else {}
        rest = {k: v for k, v in state.items() if k in own and not k.startswith(prefix)}
        if rest:
            incompatible = super()._load_model({"model": rest})
            self.logger.info("Loaded %d further tensors by name", len(rest))
            for key, there, here in incompatible.incorrect_shapes:
                self.logger.warning("Left out %s: %s in the file, %s here", key, there, here)


def warn_of_rounding(trunk: SwinTrunk, description: AdapterConfig, source: str) -> None:
    """Log a warning if the trunk's weights are rounded in another way than in the training."""
    if trunk.origin is not None and trunk.origin.stored != description.trunk.stored:
        logger.warning(
            "%s was trained with its trunk kept as %s; this trunk is kept as %s: predictions "
            "differ by that rounding",
            *(source, description.trunk.stored, trunk.origin.stored),
        )


def _check_anchors_and_pooling(model: nn.Module, description: AdapterConfig, source: str) -> None:
    """Check that a model has those of a torchvision adapter, whose tensors would fit others too."""
    overrides, size = [], description.model.get("size")
    rpn, one_stage = getattr(model, "proposal_generator", None), isinstance(model, RetinaNet)
    if (isinstance(rpn, RPN) or one_stage) and isinstance(size, int):
        least = smallest_anchor(size)
        generator = model.anchor_generator if one_stage else rpn.anchor_generator
        x1, y1, x2, y2 = next(iter(generator.cell_anchors))[0].tolist()
        if round(math.sqrt((x2 - x1) * (y2 - y1))) != least:
            scales = [2 ** (third / 3) for third in range(3)] if one_stage else [1]
            levels = ([least * 2**level * scale for scale in scales] for level in range(5))
            sizes = ",".join(str(level).replace(" ", "") for level in levels)
            module = "model" if one_stage else "model.proposal_generator"
            overrides.append(f"{module}.anchor_generator.sizes=[{sizes}]")
    heads = getattr(model, "roi_heads", None)
    plain = isinstance(heads, StandardROIHeads) and not isinstance(heads, CascadeROIHeads)
    if plain and description.model.get("pooling", "torchvision") == "torchvision":
        for name in ("box_pooler", "mask_pooler"):
            pooler = getattr(heads, name, None)
            if pooler is not None and pooler.level_poolers[0].aligned:
                aligned = ("pooler_type=ROIAlign", "sampling_ratio=2")
                overrides += [f"model.roi_heads.{name}.{setting}" for setting in aligned]
    if overrides:
        raise UserError(
            f"{source} was trained by the e3va command, with other anchors or pooling than this "
            f"model: add {' '.join(overrides)}"
        )
