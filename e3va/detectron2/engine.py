"""Train and evaluate a LazyConfig: what the project's training script runs."""

import contextlib
import logging
import os
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_argument_parser, default_setup, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..data.split import shared_note
from ..data.workers import WorkerBatches
from ..swin.trunk import SwinTrunk
from ..utils.allocator import keep_freed_memory
from ..utils.errors import UserError
from ..utils.lock import FolderLock
from ..utils.paths import check_tensorboard_folder
from ..utils.terminal import escape_unprintable
from .checkpoint import HighwayCheckpointer, find_weights
from .checks import is_device
from .config import find_config
from .describe import describe_config, output_classes
from .distributed import share_model
from .hooks import (
    AdapterWriter,
    EventWriter,
    MetricPrinter,
    MetricWriter,
    PeakMemory,
    TrainedPartsReport,
)
from .launch import launch, one_message
from .loader import TrainLoader
from .masks import masks_on_demand
from .own_data import (
    check_data,
    has_validation_data,
    resolve_classes,
    resolve_validation,
    store_split,
)
from .presets import resolve_preset
from .together import (
    Configs,
    TogetherTrainer,
    agree,
    build_over,
    common_loaders,
    folder_of,
    load_tasks,
    naming,
)
from .trainer import HighwayTrainer

logger = logging.getLogger(__name__)


def main(description: str) -> None:
    """Run the command line of the training script."""
    escape_unprintable()
    run(default_argument_parser(epilog=description).parse_args())


def run(args: Namespace) -> None:
    """Train, or evaluate with ``--eval-only``, in all processes of Detectron2's parsed flags."""
    with one_message():
        if not args.config_file:
            raise UserError("--config-file is not given: expected a path or a config's name")
        args.config_file = str(find_config(args.config_file))
        tasks = load_tasks(args.config_file, args.opts)
        if len(tasks) > 1 and not args.eval_only:
            agree(tasks)
        with contextlib.ExitStack() as held:
            for name, cfg in tasks.items():
                with naming(name):
                    _prepare_alone(cfg, args, held)
            first = next(iter(tasks.values()))
            launch(_work, (tasks, args), args, first.train.device)


def _prepare_alone(cfg: DictConfig, args: Namespace, held: contextlib.ExitStack) -> None:
    """Call :func:`prepare`, and lock the folder of a training until ``held`` ends."""
    folder = cfg.get("train", {}).get("output_dir", "")
    exists = os.path.isdir(folder)  # a wrong command must not create it
    if exists:
        held.enter_context(_sole_use(folder, args))
    prepare(cfg, resume=args.resume, eval_only=args.eval_only)
    if not exists:
        held.enter_context(_sole_use(folder, args))


@contextlib.contextmanager
def _sole_use(folder: str, args: Namespace) -> Iterator[None]:
    """Hold the lock of a training's folder in the process that starts first of all."""
    first = os.environ.get("RANK", "0") == "0" and args.machine_rank == 0
    lock = FolderLock(folder) if first and not args.eval_only else None
    try:
        yield
    finally:
        if lock:
            lock.release()


def prepare(cfg: DictConfig, *, resume: bool = False, eval_only: bool = False) -> DictConfig:
    """Check device, weights, data and output folder before anything is built; complete the config.

    The config gets the class names, and the place of validation data that the training data
    contain. ``resume`` and ``eval_only`` are the flags of the training script.
    """
    for key in ("model", "train", "optimizer", "dataloader"):
        if key not in cfg:
            raise UserError(f"the config has no {key!r}: expected a training config such as COCO/…")
    check_device(cfg.train.device)
    check_tensorboard_folder(cfg.train.output_dir, "train.output_dir")
    resume = resume and os.path.isfile(os.path.join(cfg.train.output_dir, "last_checkpoint"))
    check_weights(cfg, resume, eval_only)
    resolve_preset(cfg)
    training, validation = {}, {}  # path of each image by its name
    if "data" in cfg:
        resolve_validation(cfg)
        resolve_classes(cfg)
        if not eval_only:
            training = check_data(cfg, training=True)
        if has_validation_data(cfg.data):
            validation = check_data(cfg, training=False)
        if note := shared_note(training.values(), validation.values()):
            logger.warning(note)
    try:
        os.makedirs(cfg.train.output_dir, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"train.output_dir={cfg.train.output_dir} cannot be written ({error.strerror}): "
            "expected a folder, or a name for a new one"
        ) from None
    if cfg.get("data", {}).get("val_split"):
        store_split(cfg, validation, same=resume or eval_only)
    return cfg


def check_weights(cfg: DictConfig, resume: bool, eval_only: bool) -> None:
    """Check that the weights to start from exist; ``resume`` needs none."""
    given = [cfg.train.get(key) for key in ("init_checkpoint", "trunk")]
    if eval_only and not given[0]:
        raise UserError(
            "--eval-only without weights: add train.init_checkpoint=PATH of a checkpoint or adapter"
        )
    if eval_only or not resume:
        for path in filter(None, given):
            find_weights(path)


def check_device(device: str) -> None:
    """Raise UserError if torch cannot use the device."""
    if not is_device(device):
        raise UserError(f"device {device!r}: expected cpu, cuda or cuda:N")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"train.device={device}, but torch {torch.__version__} finds no CUDA device here: "
            "add train.device=cpu, or check the driver and the torch build"
        )


def _work(tasks: Configs, args: Namespace) -> None:
    escape_unprintable()
    first = next(iter(tasks.values()))
    folder = first.train.output_dir if "" in tasks else str(folder_of(tasks))
    # Detectron2 keeps the logger of each folder, so the log file too escapes what it cannot encode.
    log = setup_logger(folder, distributed_rank=comm.get_rank())
    escape_unprintable(handler.stream for handler in log.handlers)
    if "" in tasks:
        default_setup(first, args)
    else:
        _set_up_tasks(tasks, args)
    # Detectron2 configures only its own loggers; ours use their handlers.
    ours, theirs = logging.getLogger("e3va"), logging.getLogger("detectron2")
    ours.handlers, ours.propagate = theirs.handlers, False
    ours.setLevel(logging.INFO)
    if not args.eval_only:
        train(first, args.resume) if "" in tasks else train_together(tasks, args.resume)
        return
    for name, cfg in tasks.items():
        if name:
            logger.info("Task %s", name)
        model = instantiate(cfg.model).to(cfg.train.device)
        about = {"classes": output_classes(cfg)}
        checkpointer = HighwayCheckpointer(model, about=about, **adapter_options(cfg))
        checkpointer.load(cfg.train.init_checkpoint)
        evaluate(cfg, model)


def _set_up_tasks(tasks: Configs, args: Namespace) -> None:
    """Call Detectron2's setup for the common folder; write each task's config into its own."""
    settings = next(iter(tasks.values())).train.copy()
    settings.output_dir = str(folder_of(tasks))
    names = {name: cfg.train.config_name for name, cfg in tasks.items()}
    default_setup(OmegaConf.create({"tasks": names, "train": settings}), args)
    if comm.is_main_process():
        for cfg in tasks.values():
            LazyConfig.save(cfg, os.path.join(cfg.train.output_dir, "config.yaml"))


def adapter_options(cfg: DictConfig) -> dict[str, Any]:
    """Return a config's options of :class:`HighwayCheckpointer` for loading an adapter."""
    # Configs with Detectron2's own "train" lack these keys.
    usual = {"trunk": "", "adapter_parts": "all", "any_trunk": False}
    return {key: cfg.train.get(key, value) for key, value in usual.items()}


def evaluate(cfg: DictConfig, model: nn.Module) -> dict | None:
    """Evaluate on the test data and print the results; return None without test data."""
    if "evaluator" not in cfg.dataloader or ("data" in cfg and not has_validation_data(cfg.data)):
        logger.info("No evaluation: the config names no validation data")
        return None
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    with masks_on_demand(model):
        results = inference_on_dataset(model, WorkerBatches(loader), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def build_trainer(
    cfg: DictConfig, loader: TrainLoader | None = None, trunk: SwinTrunk | None = None
) -> tuple[HighwayTrainer, HighwayCheckpointer]:
    """Build model, optimizer, loader, hooks and checkpointer from a config.

    ``loader`` and ``trunk`` take the place of those that the config describes.
    """
    train_cfg = cfg.train
    if train_cfg.device == "cpu":
        keep_freed_memory()
    model = instantiate(cfg.model) if trunk is None else build_over(cfg, trunk)
    cfg.optimizer.params.model = model.to(train_cfg.device)
    optimizer = instantiate(cfg.optimizer)
    del cfg.optimizer.params.model
    loader = loader or instantiate(cfg.dataloader.train)
    model = share_model(model, train_cfg.device, OmegaConf.to_container(train_cfg.ddp))
    trainer = HighwayTrainer(
        model,
        loader,
        optimizer,
        # Configs with Detectron2's own "train" lack what configs/common/train.py adds.
        precision=train_cfg.amp.get("dtype", "fp16") if train_cfg.amp.enabled else "fp32",
        accumulate=train_cfg.get("accumulate", 1),
        clip_norm=train_cfg.get("clip_norm", 0.0),
        seed=max(train_cfg.get("seed", 0), 0),
        sample_by_image=train_cfg.get("sample_by_image", False),
    )
    about, folder = describe_config(cfg, loader), train_cfg.output_dir
    options = {"about": about, **adapter_options(cfg), "trainer": trainer}
    checkpointer = HighwayCheckpointer(model, folder, **options)
    adapter = AdapterWriter(folder, about)
    schedule = hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))
    every_process = [hooks.IterationTimer(), schedule, PeakMemory()]
    evaluation = hooks.EvalHook(train_cfg.eval_period, lambda: adapter.record(evaluate(cfg, model)))
    if not comm.is_main_process():
        trainer.register_hooks([*every_process, evaluation])
        return trainer, checkpointer
    saving = hooks.PeriodicCheckpointer(checkpointer, **train_cfg.checkpointer)
    metrics = MetricWriter(os.path.join(folder, "metrics.json"))
    writers = [MetricPrinter(train_cfg.max_iter), metrics, EventWriter(folder)]
    writing = hooks.PeriodicWriter(writers, period=train_cfg.log_period)
    # What a training leaves is written before it is scored, which may fail.
    last = [saving, adapter, evaluation, writing]
    trainer.register_hooks([TrainedPartsReport(), *every_process, *last])
    return trainer, checkpointer


def train(cfg: DictConfig, resume: bool = False) -> HighwayTrainer:
    """Train from ``train.init_checkpoint``, or resume from the last checkpoint of the output."""
    trainer, checkpointer = build_trainer(cfg)
    trainer.train(_load(cfg, trainer, checkpointer, resume), cfg.train.max_iter)
    return trainer


def _load(
    cfg: DictConfig, trainer: HighwayTrainer, checkpointer: HighwayCheckpointer, resume: bool
) -> int:
    """Load the weights to start from, or the last checkpoint; return the first iteration."""
    if resume and not checkpointer.has_checkpoint():
        logger.warning("--resume: no checkpoint in %s; starting anew", cfg.train.output_dir)
        resume = False
    weights = cfg.train.init_checkpoint or cfg.train.get("trunk", "") or ""
    checkpointer.resume_or_load(weights, resume=resume)
    return trainer.iter + 1 if resume else 0


def train_together(tasks: Configs, resume: bool = False) -> dict[str, HighwayTrainer]:
    """Train the models of several configs over one trunk, see :mod:`e3va.detectron2.together`."""
    loaders, trainers, starts = common_loaders(tasks), {}, {}
    first = next(iter(tasks.values()))
    logger.info("%d images with labels of all tasks", next(iter(loaders.values())).images)
    for name, cfg in tasks.items():
        seed_all_rng(first.train.seed + comm.get_rank())  # as for a training of its own
        trunk = next(iter(trainers.values())).trunk if trainers else None
        trainers[name], checkpointer = build_trainer(cfg, loaders[name], trunk)
        starts[name] = _load(cfg, trainers[name], checkpointer, resume)
    TogetherTrainer(trainers).train(starts, first.train.max_iter)
    return trainers
