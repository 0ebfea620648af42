"""Part predict: predicted images a second, and the operators that take longest in a step."""

import torch
from cost.limits import measure as measure_limits
from cost.models import SUBJECTS, Spec, pick_framework

from .part import Part
from .subjects import autocast

ROWS = 20  # operators and kernels of the profile


def run(part: Part) -> None:
    """Measure predictions, then profile a training step."""
    size = (64, 96) if part.short else (800, 1333)
    for preset in ("swin_nano",) if part.short else ("swin_t", "swin_l"):
        for precision in ("fp32", part.half):
            with part.attempt(f"predictions of {preset}, {precision}"):
                _predict(part, preset, precision, size)
    with part.attempt("profile of a step"):
        _profile(part, "swin_nano" if part.short else "swin_l", size)


def _subject(part: Part, preset: str, precision: str, size: tuple[int, int]):
    framework = pick_framework("torchvision" if part.short else None)
    spec = Spec("e3va_chain", preset, precision, framework, str(part.device), *size)
    return SUBJECTS[framework](spec)


@torch.no_grad()
def _predict(part: Part, preset: str, precision: str, size: tuple[int, int]) -> None:
    subject = _subject(part, preset, precision, size)
    model, batch = subject.model.eval(), subject.batch
    inputs = batch if isinstance(batch, list) else batch[0]

    def predict() -> None:
        with autocast(part.device, precision):
            model(inputs)

    rate = len(inputs) / part.seconds(predict)
    part.record("predict", preset=preset, precision=precision, images_a_second=rate)


def _profile(part: Part, preset: str, size: tuple[int, int]) -> None:
    subject = _subject(part, preset, part.half, size)
    limits = measure_limits(part.device, part.half)

    def step() -> None:
        with autocast(part.device, part.half):
            loss = subject.loss()
        loss.backward()
        subject.model.zero_grad(set_to_none=True)

    step()
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, activity.CUDA] if part.cuda else [activity.CPU]
    with torch.profiler.profile(activities=activities, with_flops=True) as profile:
        step()
    kinds = {"operator": torch.autograd.DeviceType.CPU, "kernel": torch.autograd.DeviceType.CUDA}
    time_of = "self_device_time_total" if part.cuda else "self_cpu_time_total"
    for kind, device_type in kinds.items():
        events = [e for e in profile.key_averages() if e.device_type == device_type]
        total = sum(getattr(e, time_of) for e in events)
        for event in sorted(events, key=lambda e: -getattr(e, time_of))[:ROWS]:
            seconds = getattr(event, time_of) / 1e6
            if seconds:
                part.record(
                    "profile",
                    kind=kind,
                    name=event.key[:90],
                    calls=event.count,
                    seconds=seconds,
                    share=seconds * 1e6 / total,
                    of_limit=event.flops / seconds / limits["flops"] if event.flops else None,
                )
    part.record("limits", precision=part.half, **limits)
