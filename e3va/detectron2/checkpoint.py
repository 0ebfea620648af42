"""Detectron2's checkpointer, with files that a crash cannot break and clear errors."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from ..adapter_files.description import AdapterConfig, describe_model
from ..adapter_files.files import FULL_KEY, apply_adapter, is_adapter, read_adapter, recorded_origin
from ..backbone import find_backbone
from ..model_zoo.resolve import SCHEME, local_path
from ..utils.atomic import atomic_open, remove_leftovers, save_atomically
from ..utils.errors import UserError
from ..weights.checkpoint import load_file, model_state
from ..weights.loading import check_trunk, find_trunk, load_trunk, missing_trunk, trunk_state
from ..weights.origin import TrunkOrigin, fingerprint
from .adapter_trunk import trunk_of
from .backbone import find_trunk_module
from .describe import FRAMEWORK
from .foreign import check_surroundings

PARTS = ("all", "backbone")


def local_weights(path: str | os.PathLike) -> str:
    """``path`` itself; of an address of the model zoo the local file or folder, downloaded if need
    be. A query of Detectron2's (``?matching_heuristics=True``) stays at its end.

    Raises:
        UserError: the zoo has nothing of that name, or it cannot be downloaded.
    """
    path = str(path)
    if not path.startswith(SCHEME):
        return path
    address, *query = path.partition("?")
    return str(local_path(address)) + "".join(query)


class HighwayCheckpointer(DetectionCheckpointer):
    """Loads whole models, pretrained Swin weights into the trunk, or adapters; saves atomically.

    The files are Detectron2's own: ``DefaultPredictor`` and the unchanged training script read
    them. They are read without executing code from them.

    Args:
        about: what checkpoints say of the model beside its backbone's settings, see
            :func:`e3va.detectron2.describe.describe_config`.
        trunk: of an adapter that is loaded: a file or ``e3va://`` address; ``""`` to look for it
            where the adapter says.
        adapter_parts: of an adapter, ``"all"``, or ``"backbone"`` to leave neck and heads as they
            are.
        any_trunk: load an adapter though the trunk's weights are not those it was trained on.
        checkpointables: as Detectron2 has it.

    Attributes:
        adapter: the description of the adapter that was loaded last; None if none was.

    Raises:
        UserError: another value of ``adapter_parts``; a model without an E³VA backbone.
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
        if adapter_parts not in PARTS:
            raise UserError(f"train.adapter_parts={adapter_parts}: expected one of {PARTS}")
        self.adapter: AdapterConfig | None = None
        self._about = dict(about or {"framework": FRAMEWORK})
        self._given_trunk = str(trunk or "")
        self._backbone_only = adapter_parts == "backbone"
        self._any_trunk = any_trunk
        self._source = ""
        self._trunk_name = next(
            name for name, module in self.model.named_modules() if module is self._trunk
        )

    @property
    def _trunk(self):
        return find_trunk_module(self.model)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``save_dir/name.pth`` and then name it in ``last_checkpoint``, both atomically.

        Beside Detectron2's own entries it has ``e3va``, the description of the adapter that is in
        it, unless the trunk trains too.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        remove_leftovers(self.save_dir)
        data = {"model": self.model.state_dict()}
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        data.update(kwargs)
        if self._trunk.frozen:
            steps = kwargs["iteration"] + 1 if "iteration" in kwargs else None
            told = describe_model(self.model, **{"steps": steps, **self._about})
            data[FULL_KEY] = told.to_dict()
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        save_atomically(data, path)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest checkpoint in ``last_checkpoint``, atomically."""
        with atomic_open(os.path.join(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load a checkpoint of the whole model, a pretrained Swin into the trunk alone, or an
        adapter and the trunk that it was trained on.

        Args:
            path: a file, an adapter's folder, an ``e3va://`` address, or what else Detectron2's
                path manager knows.
            checkpointables: as Detectron2 has it.

        Raises:
            UserError: the file is missing or damaged, lacks the trunk, or has one of another size;
                an adapter of another model or trunk, or whose trunk is not found. The model is
                then as it was.
        """
        self._source = str(path)
        local = local_weights(path)
        if local and is_adapter(local):
            self._load_adapter(Path(local))
            return {}
        if local and "://" not in local and not os.path.isfile(local.partition("?")[0]):
            raise UserError(
                f"no weights file {path}: expected a .pth or .safetensors file, or an adapter's "
                "folder; check the path"
            )
        return super().load(local, checkpointables)

    def _load_adapter(self, path: Path) -> None:
        state, told = read_adapter(path)
        folder = path if path.is_dir() else path.parent
        told.check_backbone(find_backbone(self.model)[1], self._source)
        if not self._backbone_only:
            check_surroundings(self.model, told, self._source)
        trunk = trunk_of(
            *(self._trunk, told, self._source),
            given=self._given_trunk,
            near=folder,
            any_trunk=self._any_trunk,
            rounded=not self.checkpointables,  # with them, it is a training that begins
        )
        try:
            apply_adapter(
                *(self.model, state, told, self._source),
                backbone_only=self._backbone_only,
                any_trunk=True,  # checked above
                framework=FRAMEWORK,
            )
        except UserError as error:
            classes = f" (classes: {', '.join(told.classes)})" if told.classes else ""
            raise UserError(f"{error.line} with train.adapter_parts=backbone{classes}") from None
        if trunk is not self._trunk:
            self._trunk.load_state_dict(trunk.state_dict())
            self._trunk.origin = trunk.origin
        self.adapter = told
        self._report(told)

    def _report(self, told: AdapterConfig) -> None:
        what = "the highway" if self._backbone_only else "highway, neck and heads"
        self.logger.info(
            "Loaded %s of the adapter %s, on the trunk %s", what, self._source, told.trunk.source
        )
        ours = self._about.get("classes")
        if ours and told.classes and not self._backbone_only and (*ours,) != told.classes:
            self.logger.warning(
                "%s has the classes %s, but here they are %s: their outputs are taken over in this "
                "order",
                *(self._source, ", ".join(told.classes), ", ".join(ours)),
            )

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
            return self._load_by_heuristics(checkpoint)
        state = model_state(checkpoint, self._source)
        prefix = find_trunk(state, self._source)
        if prefix is None:
            raise missing_trunk(state, self._source)
        if prefix == f"{self._trunk_name}.":
            check_trunk(self._trunk, trunk_state(state, prefix), self._source)
            origin = recorded_origin(checkpoint)
            incompatible = super()._load_model({**checkpoint, "model": state})
            self._trunk.origin = origin
            return incompatible
        loaded = load_trunk(self._trunk, state, self._source)
        self.logger.info(
            "Loaded a pretrained trunk: %d tensors of %s", loaded.tensors, self._source
        )
        for note in loaded.notes:
            self.logger.info("%s: %s", self._source, note)
        self._load_rest(state, prefix)
        return None

    def _load_by_heuristics(self, checkpoint: dict) -> Any:
        origin = recorded_origin(checkpoint)
        incompatible = super()._load_model(checkpoint)
        trunk, own = self._trunk, f"{self._trunk_name}."
        if not any(key.startswith(own) for key in incompatible.missing_keys):
            name = Path(self._source.partition("?")[0]).name
            trunk.origin = origin or TrunkOrigin(name, fingerprint(trunk.state_dict()))
        return incompatible

    def _load_rest(self, state: Mapping[str, Any], prefix: str) -> None:
        """Of another Swin detector, what follows the backbone may fit too."""
        rest = {k: v for k, v in state.items() if not k.startswith(prefix)} if prefix else {}
        rest = {k: v for k, v in rest.items() if k in self.model.state_dict()}
        if rest:
            incompatible = super()._load_model({"model": rest})
            self.logger.info("Loaded %d further tensors by name", len(rest))
            for key, there, here in incompatible.incorrect_shapes:
                self.logger.warning("Left out %s: %s in the file, %s here", key, there, here)
