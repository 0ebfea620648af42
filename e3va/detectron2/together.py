"""Training of several models over one trunk, each with its own config, folder and adapter."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..backbone import find_backbone, trunk_prefix
from ..swin.shared_passes import share_passes
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from .config import apply_overrides, bottom_up_node, find_config, has_key, load_config, read_config
from .loader import TrainLoader
from .trainer import HighwayTrainer

Configs = dict[str, DictConfig]  # by the tasks' names
# What all tasks take from the first one, so that they see the same images.
_OF_FIRST = (
    "dataloader.train.mapper.augmentations",
    "dataloader.train.mapper.image_format",
    "dataloader.test.mapper.augmentations",
    "dataloader.train.total_batch_size",
    "dataloader.train.num_workers",
    "train.max_iter",
    "train.seed",
    "train.device",
    "train.accumulate",
    "train.ddp",
)
# What must be equal because the trunk is the same.
_OF_TRUNK = ("preset", "memory", "trunk_precision")


def load_tasks(config: str | os.PathLike, overrides: Sequence[str] = ()) -> Configs:
    """Load a config whose ``tasks`` name a config for each task; apply overrides to them.

    An override such as ``labels.data.classes=[…]``, with the name of a task before its key, is for
    that task; every other one is for all tasks whose config has its key. Each task writes into a
    folder of its name in ``train.output_dir``.

    Returns:
        The configs by the tasks' names; of a config without ``tasks``, that config with the name
        ``""``.

    Raises:
        UserError: see :func:`e3va.detectron2.load_config`; an override is for no task.
    """
    whole = read_config(find_config(config))
    if "tasks" not in whole:
        return {"": apply_overrides(whole, overrides)}
    plain = {name: load_config(path) for name, path in whole.tasks.items()}
    given: dict[str, list[str]] = {name: [] for name in plain}
    for override in overrides:
        first, _, rest = override.partition(".")
        key = rest.partition("=")[0]
        if first in list(plain)[1:] and any(f"{key}.".startswith(f"{own}.") for own in _OF_FIRST):
            raise UserError(
                f"{override}: all tasks take {key} from the first one, {next(iter(plain))}; set "
                f"{key} there, or leave it out"
            )
        takers = [name for name, cfg in plain.items() if has_key(cfg, override.partition("=")[0])]
        if first in plain and rest:
            given[first].append(rest)
        else:  # a key of no config gets its error there
            for name in takers or plain:
                given[name].append(override)
    tasks = {}
    for name, cfg in plain.items():
        with naming(name):
            tasks[name] = apply_overrides(cfg, given[name])
        cfg.train.output_dir = os.path.join(cfg.train.output_dir, name)
    return tasks


@contextmanager
def naming(task: str) -> Iterator[None]:
    """Put the name of a task before the message of a mistake."""
    try:
        yield
    except UserError as error:
        raise (UserError(f"{task}: {error.line}") if task else error) from None


def agree(tasks: Configs) -> None:
    """Let all tasks train on the images of the first one, in its order and augmentations.

    Raises:
        UserError: the tasks have different trunks, or a trunk that trains.
    """
    name, first = next(iter(tasks.items()))
    for other, cfg in tasks.items():
        highway = instantiate(bottom_up_node(cfg).highway)
        if highway.train_trunk or highway.inside:
            what = f"recipe={highway.recipe}" if highway.train_trunk else "placement=inside"
            raise UserError(
                f"the task {other} has a highway with {what}, but the tasks share a frozen trunk: "
                "give it another highway, or train it alone"
            )
        for key in _OF_TRUNK:
            ours, own = (str(bottom_up_node(config).get(key)) for config in (first, cfg))
            if ours != own:
                raise UserError(
                    f"the task {other} has the backbone's {key}={own}, the task {name} {ours}: "
                    "expected the same trunk"
                )
        if cfg.train.init_checkpoint != first.train.init_checkpoint:
            raise UserError(
                f"the tasks {name} and {other} start from different weights "
                f"({first.train.init_checkpoint} and {cfg.train.init_checkpoint}): expected one "
                "train.init_checkpoint for all"
            )
        for key in _OF_FIRST if cfg is not first else ():
            value = OmegaConf.select(first, key)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            OmegaConf.update(cfg, key, value, merge=False)
    _drop_images_of_others(tasks.values())


def _drop_images_of_others(configs: Iterable[DictConfig]) -> None:
    """Drop validation images that only another task has annotations for."""
    parts = [cfg.data.val for cfg in configs if "data" in cfg]
    validated = [bool(val.get("json") or val.get("labels")) for val in parts]
    for val, has_own in zip(parts, validated, strict=True):
        if any(validated) and not has_own:
            val.images = ""


def common_loaders(tasks: Configs) -> dict[str, TrainLoader]:
    """Return the loaders of all tasks, restricted to the images that all of them have.

    Raises:
        UserError: there are no such images.
    """
    loaders = {name: instantiate(cfg.dataloader.train) for name, cfg in tasks.items()}
    files = [list(map(os.path.realpath, loader.files)) for loader in loaders.values()]
    common = [file for file in files[0] if all(file in own for own in map(set, files))]
    if not common:
        counts = ", ".join(
            f"{len(own)} of {name}" for name, own in zip(loaders, files, strict=True)
        )
        raise UserError(f"no image has labels of all tasks ({counts}): expected the same images")
    for loader, own in zip(loaders.values(), files, strict=True):
        places = {file: place for place, file in enumerate(own)}
        loader.keep([places[file] for file in common])
    return loaders


def build_over(cfg: DictConfig, trunk: SwinTrunk) -> nn.Module:
    """Build a config's model over a trunk, with the random weights that it has over its own.

    Those of the highway depend on the random numbers that a new trunk has drawn before.
    """
    own = instantiate(cfg.model).state_dict()
    node = bottom_up_node(cfg)
    node._set_flag("allow_objects", True)
    node.trunk = trunk
    model = instantiate(cfg.model)
    del node["trunk"]
    assert find_backbone(model)[1].trunk is trunk
    prefix = trunk_prefix(model)
    rest = {key: value for key, value in own.items() if not key.startswith(prefix)}
    model.load_state_dict(rest, strict=False)
    return model


@dataclass(eq=False)
class TogetherTrainer:
    """Loop that trains several models over one trunk, which runs once for each batch.

    Every model has its own optimizer, hooks and records, and ends with the weights of a training
    on its own: the tasks have only the frozen trunk in common, and each step is seeded.

    Args:
        trainers: trainers by the tasks' names, whose models share a trunk and whose loaders give
            the same images.
    """

    trainers: Mapping[str, HighwayTrainer]

    def train(self, starts: Mapping[str, int], max_iter: int) -> None:
        """Run all iterations; ``starts`` has each trainer's first one."""
        trainers = self.trainers
        for name, trainer in trainers.items():
            trainer.begin(starts[name], max_iter)
            trainer.storage = EventStorage(starts[name])
        with ExitStack() as ends:
            for trainer in reversed(trainers.values()):  # the last callback runs first
                ends.callback(_within_storage, trainer, trainer.after_train)
            for trainer in trainers.values():
                _within_storage(trainer, trainer.before_train)
            for iteration in range(min(starts.values()), max_iter):
                self._run_iteration(
                    {name: own for name, own in trainers.items() if starts[name] <= iteration},
                    iteration,
                )
            for trainer in trainers.values():
                trainer.iter = max(trainer.start_iter, max_iter)

    def _run_iteration(self, trainers: Mapping[str, HighwayTrainer], iteration: int) -> None:
        for trainer in trainers.values():
            trainer.iter = iteration
            _within_storage(trainer, trainer.before_step)
        with share_passes(next(iter(trainers.values())).trunk) as passes:
            for name, trainer in trainers.items():
                passes.reader = name
                _within_storage(trainer, trainer.run_step)
        _check_shared(passes.readers, trainers)
        for trainer in trainers.values():  # an evaluation must not keep what the trunk computes
            _within_storage(trainer, trainer.after_step)


def _check_shared(readers: Iterable[list[str]], trainers: Mapping[str, HighwayTrainer]) -> None:
    """Check that all tasks gave the trunk the same images.

    Raises:
        UserError: they did not, for example because they normalize them differently.
    """
    for group in readers:
        if {*group} != {*trainers}:
            raise UserError(
                f"the tasks {', '.join(trainers)} give the trunk different images: expected the "
                "same pixel_mean, pixel_std, padding and mapper in all of them"
            )


def _within_storage(trainer: HighwayTrainer, function: Callable[[], None]) -> None:
    with trainer.storage:
        function()


def folder_of(tasks: Configs) -> Path:
    """Return the folder that holds the tasks' folders."""
    return Path(next(iter(tasks.values())).train.output_dir).parent
