"""Detectron2's checkpointer, with files that a crash cannot break and clear errors."""

import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..checkpoint import (
    atomic_open,
    load_file,
    model_state,
    remove_leftovers,
    save_atomically,
)
from ..errors import UserError
from ..weights import check_trunk, find_trunk, load_trunk, trunk_state
from .backbone import find_trunk_module


class HighwayCheckpointer(DetectionCheckpointer):
    """Loads whole models, or pretrained Swin weights into the trunk; saves atomically.

    The files are Detectron2's own: ``DefaultPredictor`` and the unchanged training script read
    them. They are read without executing code from them.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self._source = ""
        self._trunk_name = next(
            name for name, module in self.model.named_modules() if module is self._trunk
        )

    @property
    def _trunk(self):
        return find_trunk_module(self.model)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth`` and then name it in ``last_checkpoint``, both atomically."""
        if not self.save_dir or not self.save_to_disk:
            return
        remove_leftovers(self.save_dir)
        data = {"model": self.model.state_dict()}
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        save_atomically(data, path)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest checkpoint in ``last_checkpoint``, atomically."""
        with atomic_open(os.path.join(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load a checkpoint of the whole model, or a pretrained Swin into the trunk alone.

        Raises:
            UserError: the file is missing or damaged, lacks the trunk, or has one of another size.
        """
        self._source = path
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise UserError(f"no weights file {path}: expected a .pth file; check the path")
        return super().load(path, checkpointables)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """As Detectron2's; a named but missing last checkpoint is an error, not a fresh start."""
        if resume and self.has_checkpoint() and not os.path.isfile(self.get_checkpoint_file()):
            raise UserError(
                f"{self.save_dir}/last_checkpoint names {self.get_checkpoint_file()}, which is not "
                "there: put the file back, or delete last_checkpoint to start anew"
            )
        return super().resume_or_load(path, resume=resume)

    def _load_file(self, filename: str) -> dict:
        # Detectron2 unpickles .pkl and .pyth files, which can run code.
        if filename.endswith((".pkl", ".pyth")):
            return load_file(filename)
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict:
        return load_file(f)

    def _load_model(self, checkpoint: dict) -> Any:
        if checkpoint.get("matching_heuristics", False):
            return super()._load_model(checkpoint)
        state = model_state(checkpoint, self._source)
        own_prefix = f"{self._trunk_name}."
        prefix = find_trunk(state)
        if prefix is None:
            raise UserError(
                f"{self._source} lacks the trunk: none of its {len(state)} tensors is a Swin's "
                "patch_embed.proj.weight; give a pretrained Swin or a checkpoint of a whole model"
            )
        if prefix == own_prefix:
            check_trunk(self._trunk, trunk_state(state, prefix), self._source)
            return super()._load_model({**checkpoint, "model": state})
        count = load_trunk(self._trunk, state, self._source)
        self.logger.info("Loaded a pretrained trunk: %d tensors of %s", count, self._source)
        # Of another Swin detector, what follows the backbone may fit too.
        rest = {k: v for k, v in state.items() if not k.startswith(prefix)} if prefix else {}
        rest = {k: v for k, v in rest.items() if k in self.model.state_dict()}
        if rest:
            incompatible = super()._load_model({"model": rest})
            self.logger.info("Loaded %d further tensors by name", len(rest))
            for key, there, here in incompatible.incorrect_shapes:
                self.logger.warning("Left out %s: %s in the file, %s here", key, there, here)
        return None
