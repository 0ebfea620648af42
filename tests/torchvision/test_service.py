"""The HTTP service answers with what the models predict, whatever a client sends."""

import http.client
import io
import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pycocotools.mask
import pytest
import torch
import uvicorn
from PIL import Image

from e3va.torchvision import load_adapters
from e3va.torchvision.service import Limits, Worker, make_app
from e3va.torchvision.transform import detect


def picture(width=90, height=70, seed=0, kind="PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def as_tensor(data: bytes) -> torch.Tensor:
    array = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


@pytest.fixture
def models(make_trained, tmp_path):
    make_trained("mask_rcnn", "fruit")
    make_trained("semantic_fpn", "leaves", classes=("x", "y", "z"))
    return load_adapters({name: tmp_path / name for name in ("fruit", "leaves")})


class Client:
    def __init__(self, port: int, service):
        self.port, self.service = port, service

    def ask(self, path: str, body: bytes | None = None, method: str | None = None, **headers):
        """Return status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def found(self, path: str, body: bytes) -> dict:
        status, _, answer = self.ask(path, body)
        assert status == 200, answer
        return json.loads(answer)["tasks"]


@contextmanager
def serving(models, **limits):
    app = make_app(models, Limits(**limits))
    config = uvicorn.Config(app, port=0, log_level="error")
    server = uvicorn.Server(config)
    own = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [own]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Client(own.getsockname()[1], app.state.service)
    finally:
        server.should_exit = True
        thread.join(30)
        app.state.service.worker.close()


def test_results_are_those_of_the_models(models):
    body = picture()
    with serving(models) as client:
        status, headers, answer = client.ask("/predict?threshold=0", body)
        tasks = json.loads(client.ask("/tasks")[2])
        few = client.found("/predict?threshold=1&tasks=fruit", body)
    assert status == 200 and headers["content-type"] == "application/json"
    found = json.loads(answer)
    assert (found["width"], found["height"]) == (90, 70)
    with torch.no_grad():
        fruit, leaves = (detect(models.set_adapter(n), as_tensor(body)) for n in models.names)
    boxes = torch.tensor([one["bbox"] for one in found["tasks"]["fruit"]])
    boxes[:, 2:] += boxes[:, :2]
    torch.testing.assert_close(boxes, fruit["boxes"], rtol=0, atol=1e-3)
    for place, one in enumerate(found["tasks"]["fruit"]):
        assert one["category"] == ("red", "blue")[fruit["labels"][place] - 1]
        mask = pycocotools.mask.decode(one["segmentation"])
        assert np.array_equal(mask, fruit["masks"][place].numpy())
    labels = np.full((70, 90), -1)
    for one in found["tasks"]["leaves"]:
        mask = pycocotools.mask.decode(one["segmentation"]).astype(bool)
        assert one["area"] == mask.sum() and one["category"] == "xyz"[one["category_id"]]
        labels[mask] = one["category_id"]
    assert np.array_equal(labels, leaves["labels"].numpy())
    assert tasks["leaves"] == {"model": "semantic_fpn", "classes": ["x", "y", "z"]}
    assert few == {"fruit": []}


@pytest.mark.parametrize(("tasks", "width"), [("fruit", 90), ("", None)])
def test_pictures_are_drawn(models, tasks, width):
    with serving(models) as client:
        query = f"/predict?drawn=true&tasks={tasks}"
        status, headers, answer = client.ask(query, picture(kind="JPEG"))
    assert status == 200 and headers["content-type"] == "image/png"
    drawn = Image.open(io.BytesIO(answer))
    # A small image is enlarged; pictures of several tasks stand side by side.
    assert drawn.width % 90 == 0 if width else drawn.width > drawn.height * 2


def test_many_clients_get_their_own_results(models):
    bodies = [picture(seed=seed, width=60 + 10 * (seed % 3)) for seed in range(6)]
    with serving(models) as client:
        path = "/predict?threshold=0&tasks=leaves"
        expected = [client.found(path, body) for body in bodies]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: client.found(path, bodies[n % 6]), range(48)))
    for number, one in enumerate(found):
        assert one == expected[number % 6]


WRONG = [
    ("/predict?tasks=friut", picture(), 404, ["'friut'", "did you mean 'fruit'"]),
    ("/predict?threshold=7", picture(), 422, ["threshold", "7"]),
    ("/predict?threshold=x", picture(), 422, ["threshold", "x"]),
    ("/predict?drawn=maybe", picture(), 422, ["drawn", "maybe"]),
    ("/predict", b"", 400, ["no image", "JPEG"]),
    ("/predict", b"a text that is called .jpg", 415, ["no image"]),
    ("/predict", picture()[:-2000], 415, ["cannot be read"]),
    ("/predict", picture(1100, 1000), 413, ["1.1 megapixels", "more than 1"]),
    ("/predict", bytes(2**18), 413, ["larger than 0.2 MiB"]),
]


def test_wrong_requests_are_one_line_and_the_service_goes_on(models):
    with serving(models, megapixels=1.0, mib=0.2) as client:
        for path, body, expected, values in WRONG:
            if expected == 413 and len(body) > 2**18:
                body = zeros(1100, 1000)
            status, _, answer = client.ask(path, body)
            line = json.loads(answer)["error"]
            assert status == expected and "\n" not in line, (path, status, line)
            assert all(value in line for value in values), line
        assert client.ask("/elsewhere")[0] == 404
        assert client.ask("/predict")[0] == 405
        assert client.ask("/tasks", Host="evil.example")[0] == 400
        assert client.found("/predict?tasks=leaves", picture())["leaves"]


def zeros(width, height) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_request_that_is_cut_off_or_slow_holds_nothing_up(models):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"
    with serving(models, seconds=5, waiting=2) as client:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", client.port)) as cut:
                cut.sendall(head + b"half")
        time.sleep(0.2)
        assert client.found("/predict?tasks=leaves", picture())["leaves"]
    with serving(models, seconds=0.5) as client:
        slow = socket.create_connection(("127.0.0.1", client.port))
        slow.sendall(head + b"half")
        slow.settimeout(20)
        answer = b""
        while b"}" not in answer:  # head and body may arrive apart
            answer += slow.recv(4000)
        assert b" 408 " in answer.splitlines()[0] and b"within 0.5 s" in answer
        slow.close()


def test_a_busy_service_answers_503_and_a_stuck_one_504(models, monkeypatch):
    go = threading.Event()
    predict = Worker._predict
    monkeypatch.setattr(Worker, "_predict", lambda *a: go.wait(30) and predict(*a))
    with serving(models, waiting=2, seconds=30) as client, ThreadPoolExecutor(2) as pool:
        path = "/predict?tasks=leaves"
        running = [pool.submit(client.ask, path, picture()) for _ in range(2)]
        until = time.monotonic() + 20
        while not client.service._places.locked() and time.monotonic() < until:
            time.sleep(0.01)
        refused = [client.ask(path, picture()) for _ in range(20)]
        go.set()
        assert [one.result()[0] for one in running] == [200, 200]
        assert client.ask(path, picture())[0] == 200
    assert {status for status, *_ in refused} == {503}
    assert refused[0][1]["retry-after"] == "1" and b"2 requests" in refused[0][2]
    go.clear()
    with serving(models, seconds=0.5) as client:
        status, _, answer = client.ask(path, picture())
        assert status == 504 and b"no result within 0.5 s" in answer
        go.set()


def test_a_failing_model_fails_one_request(models, monkeypatch):
    predict, calls = Worker._predict, []

    def failing(self, jobs):
        calls.append(len(jobs))
        if len(calls) == 1:
            raise RuntimeError("no kernel image")
        return predict(self, jobs)

    monkeypatch.setattr(Worker, "_predict", failing)
    with serving(models) as client:
        status, _, answer = client.ask("/predict?tasks=leaves", picture())
        assert status == 500 and b"its log says why" in answer and b"kernel" not in answer
        assert client.ask("/predict?tasks=leaves", picture())[0] == 200


def test_images_of_equal_size_share_a_pass(models):
    passes = []
    models.trunk.layers[0].register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    worker = Worker(models, batch=3)
    go = threading.Event()
    predict = worker._predict
    worker._predict = lambda jobs: go.wait(30) and predict(jobs)
    images = [as_tensor(picture(seed=n, width=90 - 20 * (n == 3))) for n in range(6)]
    pixels = [(255 * image).round().byte() for image in images]
    jobs = [worker.submit(one, ("leaves", "fruit"), 0.0) for one in pixels]
    time.sleep(0.3)  # all are waiting
    go.set()
    found = [job.result(60) for job in jobs]
    worker.close()
    assert sum(passes) == 6 and len(passes) <= 4
    for image, one in zip(images, found, strict=True):
        with torch.no_grad():
            labels = detect(models.set_adapter("leaves"), image)["labels"]
        assert (one["leaves"]["labels"] == labels).float().mean() > 0.99


def test_the_page_shows_the_results_in_a_browser(models, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the path: the page needs a browser")
    sync = pytest.importorskip("playwright.sync_api")
    (tmp_path / "p.png").write_bytes(picture())
    (tmp_path / "text.jpg").write_text("no image")
    with serving(models) as client, sync.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.set_input_files("#file", tmp_path / "p.png")
        page.wait_for_function("document.images.length == 2")
        page.wait_for_function("[...document.images].every((i) => i.naturalWidth > 0)")
        assert page.inner_text("#results").split("\n")[0].startswith("fruit: red, blue")
        page.set_input_files("#file", tmp_path / "text.jpg")
        page.wait_for_function("document.querySelectorAll('.error').length == 2")
        assert "leaves: the body is no image" in page.inner_text("#results")
        browser.close()
