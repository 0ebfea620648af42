"""Train and evaluate a LazyConfig: what the project's training script runs."""

import logging
import os
from argparse import Namespace
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import default_argument_parser, default_setup, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..utils.errors import UserError
from .checkpoint import HighwayCheckpointer
from .config import find_config, load_config
from .data import class_names, coco_dicts
from .describe import describe_config, output_classes, set_classes
from .distributed import share_model
from .hooks import AdapterWriter, MetricPrinter, PeakMemory, TrainedPartsReport
from .labels import label_classes, label_dicts
from .launch import Peers, join_torchrun, launch
from .trainer import HighwayTrainer

logger = logging.getLogger(__name__)


def main(description: str) -> None:
    """The command line of ``projects/E3VA/lazyconfig_train_net.py``; the flags are Detectron2's."""
    run(default_argument_parser(epilog=description).parse_args())


def run(args: Namespace) -> None:
    """Train, or evaluate with ``--eval-only``, as Detectron2's parsed flags say.

    In one process, in as many as ``--num-gpus`` and ``--num-machines`` say, or in those that
    torchrun started. A user's mistake is printed as one line on stderr; the process then exits with
    status 1.
    """
    with Peers().one_message():
        peers = join_torchrun(args)
    with peers.one_message():
        if not args.config_file:
            raise UserError("--config-file is not given: expected a path or a config's name")
        args.config_file = str(find_config(args.config_file))
        cfg = prepare(load_config(args.config_file, args.opts), args)
        launch(_work, (cfg, args), args, cfg.train.device, peers)


def prepare(cfg: DictConfig, args: Namespace) -> DictConfig:
    """Check what can be checked before anything is built, and fill in what the data say.

    Raises:
        UserError: a device that is not there, more processes than GPUs, an output folder that
            cannot be made, a mistake in a user's own data.
    """
    for key in ("model", "train", "optimizer", "dataloader"):
        if key not in cfg:
            raise UserError(f"the config has no {key!r}: expected a training config such as COCO/…")
    check_device(cfg.train.device)
    gpus = torch.cuda.device_count()
    if str(cfg.train.device).startswith("cuda") and args.num_gpus > gpus:
        raise UserError(f"--num-gpus {args.num_gpus}: this machine has {gpus}")
    if "data" in cfg:
        resolve_classes(cfg)
        if has_validation_data(cfg.data):
            masks = cfg.dataloader.test.dataset.get("masks", True)
            check_validation_data(cfg.data, masks=masks)
    try:
        os.makedirs(cfg.train.output_dir, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"train.output_dir={cfg.train.output_dir} cannot be written ({error.strerror}): "
            "expected a folder, or a name for a new one"
        ) from None
    return cfg


def check_device(device: str) -> None:
    """Check that torch can use the device.

    Raises:
        UserError: it cannot.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UserError(f"device {device!r}: expected cpu, cuda or cuda:N") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"train.device={device}, but torch {torch.__version__} finds no CUDA device here: "
            "add train.device=cpu, or check the driver and the torch build"
        )


def resolve_classes(cfg: DictConfig) -> None:
    """Write the class names and their number into a config that reads them from annotations or
    label maps, so that the saved config is complete without them."""
    if "labels" in cfg.data.train:
        train = cfg.data.train
        cfg.data.classes = label_classes(train.images, train.labels, cfg.data.classes)
    elif cfg.data.classes is None:
        cfg.data.classes = class_names(cfg.data.train.json)
    set_classes(cfg, cfg.data.classes)


def has_validation_data(data: DictConfig) -> bool:
    """Whether any validation data were given."""
    return any(data.val.get(key) for key in ("json", "images", "labels"))


def check_validation_data(data: DictConfig, masks: bool = True) -> None:
    """Find mistakes in the validation data before the training and not when it is done.

    Raises:
        UserError: see :func:`e3va.data.coco.read_coco`; or other classes than those of the training. Of
            label maps, see :func:`e3va.detectron2.labels.label_dicts`.
    """
    if "labels" in data.val:
        label_dicts(data.val.images, data.val.labels, training=False, classes=data.classes)
        return
    coco_dicts(data.val.json, data.val.images, training=False, masks=masks)
    names = class_names(data.val.json)
    if names != list(data.classes):
        raise UserError(
            f"{data.val.json} has the classes {', '.join(names)}, but the model learns "
            f"{', '.join(data.classes)}: expected the same names in the order of their ids"
        )


def _work(cfg: DictConfig, args: Namespace) -> None:
    default_setup(cfg, args)
    _log_to_console_too()
    if args.eval_only:
        model = instantiate(cfg.model).to(cfg.train.device)
        about = {"classes": output_classes(cfg)}
        checkpointer = HighwayCheckpointer(model, about=about, **adapter_options(cfg))
        checkpointer.load(_weights_to_evaluate(cfg))
        evaluate(cfg, model)
    else:
        train(cfg, resume=args.resume)


def _log_to_console_too() -> None:
    # Detectron2 sets up its own loggers alone; ours join them.
    ours, theirs = logging.getLogger("e3va"), logging.getLogger("detectron2")
    ours.handlers, ours.propagate = theirs.handlers, False
    ours.setLevel(logging.INFO)


def _weights_to_evaluate(cfg: DictConfig) -> str:
    if not cfg.train.init_checkpoint:
        raise UserError(
            "--eval-only without weights: add train.init_checkpoint=PATH of a checkpoint or adapter"
        )
    return cfg.train.init_checkpoint


def adapter_options(cfg: DictConfig) -> dict[str, Any]:
    """How a config wants an adapter to be loaded, for :class:`HighwayCheckpointer`."""
    return {
        # Configs on Detectron2's own "train" lack these keys.
        "trunk": cfg.train.get("trunk", ""),
        "adapter_parts": cfg.train.get("adapter_parts", "all"),
        "any_trunk": bool(cfg.train.get("any_trunk", False)),
    }


def evaluate(cfg: DictConfig, model: nn.Module) -> dict | None:
    """Evaluate on the test data and print the results; None if the config names no test data."""
    if "evaluator" not in cfg.dataloader or ("data" in cfg and not has_validation_data(cfg.data)):
        logger.info("No validation data given: no evaluation")
        return None
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def build_trainer(cfg: DictConfig) -> tuple[HighwayTrainer, HighwayCheckpointer]:
    """Build model, optimizer, loader, hooks and checkpointer from a config."""
    train_cfg = cfg.train
    model = instantiate(cfg.model).to(train_cfg.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    del cfg.optimizer.params.model
    loader = instantiate(cfg.dataloader.train)
    model = share_model(model, train_cfg.device, OmegaConf.to_container(train_cfg.ddp))
    trainer = HighwayTrainer(
        model,
        loader,
        optimizer,
        # Configs on Detectron2's own "train" lack what configs/common/train.py adds.
        precision=train_cfg.amp.get("dtype", "fp16") if train_cfg.amp.enabled else "fp32",
        accumulate=train_cfg.get("accumulate", 1),
        clip_norm=train_cfg.get("clip_norm", 0.0),
        seed=max(train_cfg.get("seed", 0), 0),
    )
    about = describe_config(cfg, loader)
    checkpointer = HighwayCheckpointer(
        model, train_cfg.output_dir, about=about, **adapter_options(cfg), trainer=trainer
    )
    is_main = comm.is_main_process()
    adapter_writer = AdapterWriter(train_cfg.output_dir, about)

    def evaluate_and_record() -> dict | None:
        results = evaluate(cfg, model)
        adapter_writer.record(results)
        return results

    trainer.register_hooks(
        [
            TrainedPartsReport() if is_main else None,
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            PeakMemory(),
            hooks.PeriodicCheckpointer(checkpointer, **train_cfg.checkpointer) if is_main else None,
            hooks.EvalHook(train_cfg.eval_period, evaluate_and_record),
            hooks.PeriodicWriter(_writers(train_cfg), period=train_cfg.log_period)
            if is_main
            else None,
            adapter_writer if is_main else None,
        ]
    )
    return trainer, checkpointer


def _writers(train_cfg: DictConfig) -> list:
    folder = train_cfg.output_dir
    return [
        MetricPrinter(train_cfg.max_iter),
        JSONWriter(os.path.join(folder, "metrics.json")),
        TensorboardXWriter(folder),
    ]


def train(cfg: DictConfig, resume: bool = False) -> HighwayTrainer:
    """Train from ``train.init_checkpoint``, or go on from the last checkpoint of the output."""
    trainer, checkpointer = build_trainer(cfg)
    if resume and not checkpointer.has_checkpoint():
        logger.warning("--resume: no checkpoint in %s, so this starts anew", cfg.train.output_dir)
        resume = False
    weights = cfg.train.init_checkpoint or cfg.train.get("trunk", "") or ""
    if not resume and not weights and trainer.trunk.frozen:
        logger.warning(
            "No pretrained weights (train.init_checkpoint is empty): the frozen trunk is random"
        )
    checkpointer.resume_or_load(weights, resume=resume)
    trainer.train(trainer.iter + 1 if resume else 0, cfg.train.max_iter)
    return trainer
