"""A small HTTP service: an image in, the results of several adapters over one trunk out."""

import asyncio
import io
import queue
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from torch import Tensor
from torchvision.transforms import v2

from ..adapter_files.adapter_set import AdapterSet
from ..data.images import read_image
from ..swin.shared_passes import share_passes
from ..utils.errors import UserError, unknown_choice
from .evaluate import to_coco
from .masks import encode_masks
from .models import ModelConfig
from .predict import device_of, draw_found
from .predict_all import side_by_side
from .transform import detect_batch

PAGE = Path(__file__).parent.parent / "assets" / "service.html"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Limits:
    """The limits of a service.

    Attributes:
        waiting: requests that are in work at once; further ones get the status 503.
        batch: images in one pass of the trunk.
        mib: largest image file in MiB.
        megapixels: largest image in millions of pixels.
        seconds: time for receiving an image, and again for its results.
    """

    waiting: int = 64
    batch: int = 4
    mib: float = 32.0
    megapixels: float = 50.0
    seconds: float = 60.0


class Refused(Exception):
    """A request that is answered with an error status and one line."""

    def __init__(self, status: int, line: str):
        self.status, self.line = status, line
        super().__init__(line)


@dataclass(eq=False)
class _Job:
    """An image [3, H, W] uint8 and its tasks; the result is the models' output by task."""

    image: Tensor
    tasks: tuple[str, ...]
    threshold: float
    done: Future = field(default_factory=Future)


class Worker:
    """The thread that runs the models, on the images of several requests together.

    Only images of equal size are in one batch, because padding would change their results.

    Args:
        models: the adapters over one trunk.
        batch: largest number of images in a pass.
    """

    def __init__(self, models: AdapterSet, batch: int):
        self.models = {name: models.set_adapter(name) for name in models.names}
        self.trunk, self.batch = models.trunk, batch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="e3va worker")
        self._thread.start()

    def submit(self, image: Tensor, tasks: tuple[str, ...], threshold: float) -> Future:
        """Return the future output of an image [3, H, W] uint8, by task."""
        job = _Job(image, tasks, threshold)
        self._jobs.put(job)
        return job.done

    def close(self) -> None:
        """End the thread after the jobs before."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        left: list[_Job] = []
        while True:
            if not left:
                left = [self._jobs.get()]
            while not self._jobs.empty():
                left.append(self._jobs.get())
            if left[0] is None:
                return
            first = left[0]
            same = [j for j in left if j is not None and j.image.shape == first.image.shape]
            batch = same[: self.batch]
            left = [job for job in left if job not in batch]
            self._compute(batch)

    def _compute(self, jobs: list[_Job]) -> None:
        wanted = [job for job in jobs if job.done.set_running_or_notify_cancel()]
        try:
            found = self._predict(wanted) if wanted else []
        except Exception as error:  # of one batch; the service goes on
            for job in wanted:
                job.done.set_exception(error)
            return
        for job, result in zip(wanted, found, strict=True):
            job.done.set_result(result)

    @torch.no_grad()
    def _predict(self, jobs: list[_Job]) -> list[dict[str, dict[str, Tensor]]]:
        """Compute each task that a job wants for all images, so that all tasks share one pass."""
        device, thresholds = device_of(self.trunk), [job.threshold for job in jobs]
        pixels = [job.image.to(device) for job in jobs]
        images = [v2.functional.to_dtype(p, torch.float32, scale=True) for p in pixels]
        outputs = {}
        with share_passes(self.trunk) as passes:
            for task in dict.fromkeys(task for job in jobs for task in job.tasks):
                passes.reader = task
                outputs[task] = detect_batch(self.models[task], images, thresholds)
        return [
            {task: outputs[task][place] for task in job.tasks} for place, job in enumerate(jobs)
        ]


class Service:
    """What the service's addresses answer; :func:`make_app` makes an application of it.

    Args:
        models: the adapters over one trunk; each model has its config as ``config``.
        limits: the limits.
    """

    def __init__(self, models: AdapterSet, limits: Limits):
        self.limits = limits
        self.worker = Worker(models, limits.batch)
        self.configs: dict[str, ModelConfig] = {
            name: model.config for name, model in self.worker.models.items()
        }
        self._places = asyncio.Semaphore(limits.waiting)
        # A decoded image takes many times the memory of its file.
        self._decoded = asyncio.Semaphore(2 * limits.batch)

    def describe(self) -> dict[str, Any]:
        """Return what each task finds."""
        return {
            name: {"model": config.model, "classes": list(config.classes)}
            for name, config in self.configs.items()
        }

    async def predict(
        self, request: Request, tasks: str, threshold: float, drawn: bool
    ) -> Response:
        """Return the results of a request, as JSON or as a picture.

        Raises:
            Refused: the request is wrong, or the service is busy.
        """
        unknown = {*request.query_params} - {"tasks", "threshold", "drawn"}
        if unknown:
            line = unknown_choice("parameter", min(unknown), ("tasks", "threshold", "drawn")).line
            raise Refused(422, line)
        names = self._tasks(tasks)
        if self._places.locked():
            raise Refused(503, f"{self.limits.waiting} requests are in work: try again later")
        async with self._places:
            limit = self.limits.seconds
            try:
                async with asyncio.timeout(limit):
                    body = await self._receive(request)
            except TimeoutError:
                raise Refused(408, f"the image did not arrive within {limit:g} s") from None
            try:
                async with asyncio.timeout(limit), self._decoded:
                    image = await run_in_threadpool(self._decode, body)
                    pixels = v2.functional.pil_to_tensor(image)
                    future = self.worker.submit(pixels, names, threshold)
                    found = await asyncio.wrap_future(future)
                    make = self._draw if drawn else self._describe
                    return await run_in_threadpool(make, pixels, found)
            except TimeoutError:
                raise Refused(504, f"no result within {limit:g} s: try again later") from None

    def _tasks(self, given: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(filter(None, given.split(",")))) or tuple(self.configs)
        for name in names:
            if name not in self.configs:
                raise Refused(404, unknown_choice("task", name, self.configs).line)
        return names

    async def _receive(self, request: Request) -> bytes:
        most, parts, size = int(self.limits.mib * 2**20), [], 0
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            if size > most:
                raise Refused(
                    413,
                    f"the image file is larger than {self.limits.mib:g} MiB: send a smaller one",
                )
        return b"".join(parts)

    def _decode(self, body: bytes) -> Image.Image:
        expected = "expected the bytes of an image file, such as JPEG or PNG, as the body"
        if not body:
            raise Refused(400, f"the request has no image: {expected}")
        try:
            with Image.open(io.BytesIO(body)) as image:  # reads only the header
                pixels = image.width * image.height
        except Exception:
            raise Refused(415, f"the body is no image: {expected}") from None
        if pixels > self.limits.megapixels * 1e6:
            raise Refused(
                413,
                f"the image has {pixels / 1e6:.1f} megapixels, more than "
                f"{self.limits.megapixels:g}: send a smaller one",
            )
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            try:
                return read_image(file.name)
            except UserError as error:
                line = error.line.replace(f"image {file.name}", "the image")
                raise Refused(415, line) from None

    def _describe(self, pixels: Tensor, found: Mapping[str, dict]) -> Response:
        results = {name: self._results(name, own) for name, own in found.items()}
        height, width = pixels.shape[1:]
        return JSONResponse({"width": width, "height": height, "tasks": results})

    def _results(self, name: str, found: dict[str, Tensor]) -> list[dict]:
        """Return a task's results in the format of COCO; a class of a label map is one segment."""
        config = self.configs[name]
        if "boxes" in found:
            records = to_coco(found, 0, config.category_ids)
            named = dict(zip(config.category_ids, config.classes, strict=True))
            for record in records:
                del record["image_id"]
                record["category"] = named[record["category_id"]]
            return records
        records, labels = [], found["labels"]
        for label in labels.unique().tolist():
            mask = labels == label
            (rle,) = encode_masks(mask[None].byte()).records
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            record = {"category_id": label, "category": config.classes[label]}
            records.append({**record, "area": int(mask.sum()), "segmentation": segmentation})
        return records

    def _draw(self, pixels: Tensor, found: Mapping[str, dict]) -> Response:
        pictures = {
            name: draw_found(pixels, own, self.configs[name].classes) for name, own in found.items()
        }
        only = len(pictures) == 1
        picture = next(iter(pictures.values())) if only else side_by_side(pictures)
        buffer = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
        return Response(buffer.getvalue(), media_type="image/png")


def make_app(
    models: AdapterSet, limits: Limits | None = None, hosts: Sequence[str] = LOOPBACK
) -> FastAPI:
    """Make the application.

    Args:
        models: the result of :func:`e3va.torchvision.load_adapters`.
        limits: the limits; None for the defaults.
        hosts: names under which the service is called; ``"*"`` for all.

    Its addresses are ``GET /`` (a page for a browser), ``GET /tasks`` and ``POST /predict`` with an
    image file as the body and the parameters ``tasks`` (names with commas; all by default),
    ``threshold`` (default 0.5) and ``drawn`` (a picture instead of JSON). Errors are
    ``{"error": one line}``.
    """
    service = Service(models, limits or Limits())
    app = FastAPI(title="e3va", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts])

    @app.get("/")
    async def page() -> Response:
        return FileResponse(PAGE, media_type="text/html")

    @app.get("/tasks")
    async def tasks() -> Response:
        return JSONResponse(service.describe())

    @app.post("/predict")
    async def predict(
        request: Request,
        tasks: str = "",
        threshold: float = Query(0.5, ge=0, le=1),
        drawn: bool = False,
    ) -> Response:
        return await service.predict(request, tasks, threshold, drawn)

    handlers: dict[type[Exception], Callable[[Any], Response]] = {
        Refused: lambda error: _error(error.status, error.line),
        RequestValidationError: lambda error: _error(422, _wrong_parameter(error)),
        ClientDisconnect: lambda error: _error(400, "the connection was closed"),
        Exception: lambda error: _error(500, "the service failed; its log says why"),
    }
    for kind, answer in handlers.items():
        app.add_exception_handler(kind, _handler(answer))
    return app


def _handler(answer: Callable[[Any], Response]) -> Callable:
    async def handle(_: Request, error: Exception) -> Response:
        return answer(error)

    return handle


def _error(status: int, line: str) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse({"error": line}, status, headers)


def _wrong_parameter(error: RequestValidationError) -> str:
    first = error.errors()[0]
    return f"{first['loc'][-1]}={first.get('input')!r}: {first['msg']}"[:300]
