"""The preset ``"auto"`` of a config: the geometry of the weights that training starts from."""

from omegaconf import DictConfig

from ..adapter_files.files import is_adapter, read_config
from ..swin.presets import PRESETS, SwinPreset
from ..utils.errors import UserError
from ..weights.checkpoint import load_file, model_state
from ..weights.loading import find_trunk, missing_trunk, read_geometry, trunk_state
from .checkpoint import find_weights
from .checks import AUTO
from .config import bottom_up_node
from .describe import set_preset


def resolve_preset(cfg: DictConfig, weights: str = "") -> None:
    """Replace the preset ``"auto"`` in a config by the geometry of the weights, in place.

    Args:
        cfg: a training config.
        weights: path or address of a file with a Swin, or of an adapter; by default the config's
            ``train.init_checkpoint`` or ``train.trunk``.

    Raises:
        UserError: there are no weights, or they hold no Swin.
    """
    node = bottom_up_node(cfg)
    if node.get("preset") != AUTO:
        return
    weights = weights or cfg.train.get("init_checkpoint") or cfg.train.get("trunk") or ""
    if not weights:
        raise UserError(
            "model.backbone.bottom_up.preset=auto without weights: set train.init_checkpoint, "
            f"whose Swin gives the size, or set the preset to one of {', '.join(PRESETS)}"
        )
    set_preset(node, _read_preset(weights))


def _read_preset(weights: str) -> SwinPreset:
    path = find_weights(weights).partition("?")[0]
    if is_adapter(path):
        return read_config(path).backbone.preset
    state = model_state(load_file(path), path)
    prefix = find_trunk(state, path)
    if prefix is None:
        raise missing_trunk(state, path)
    return read_geometry(trunk_state(state, prefix), path)
