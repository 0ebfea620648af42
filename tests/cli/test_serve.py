"""``e3va serve`` starts, answers, ends by Ctrl-C, and refuses what it cannot do in one line."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from e3va.cli.main import main
from e3va.utils import optional


@pytest.mark.slow
def test_it_answers_until_ctrl_c(make_trained, tmp_path):
    make_trained("semantic_fpn", "leaves")
    command = [sys.executable, "-m", "e3va", "serve", tmp_path / "leaves", "--port", "0"]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line.startswith("serving leaves at http://127.0.0.1:")
    address = line.split()[3]
    with urllib.request.urlopen(f"{address}/tasks") as answer:
        assert list(json.load(answer)) == ["leaves"]
    with urllib.request.urlopen(address) as page:
        assert b"Drop a picture" in page.read()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert "Traceback" not in error and process.returncode in (0, 130)


def test_mistakes_are_one_line(make_trained, tmp_path, capsys, monkeypatch):
    make_trained("semantic_fpn", "leaves")
    leaves = str(tmp_path / "leaves")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            ([leaves, "--port", port], [f"--port {port}", "a free port"]),
            ([leaves, "--port", "99999"], ["--port 99999"]),
            ([leaves, "--host", "198.51.100.1", "--port", "0"], ["--host 198.51.100.1"]),
            ([leaves, leaves], ["same name", "'leaves'"]),
            ([f"{leaves}/model.pth"], ["model.pth", "whole model"]),
            ([str(tmp_path / "nowhere")], ["nowhere"]),
        ]
        for words, values in cases:
            assert main(["serve", *words]) == 1, words
            error = capsys.readouterr().err
            assert error.startswith("error: ") and error.count("\n") == 1, error
            assert all(value in error for value in values), error
    for module in ("fastapi", "uvicorn"):
        monkeypatch.setitem(sys.modules, module, None)
        assert main(["serve", leaves]) == 1
        assert optional.HOW_TO_INSTALL[module] in capsys.readouterr().err
        monkeypatch.undo()
