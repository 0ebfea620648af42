"""The cost benchmark: counts equal hand arithmetic, processes take turns, tables merge."""

import copy
import importlib
import json
import sys
from argparse import Namespace
from importlib import util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from e3va.utils.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODULES = ("bench", "batch", "clock", "growth", "limits", "meters", "methods", "models")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cost():
    """The benchmark's modules by name."""
    sys.path.insert(0, str(BENCHMARKS))
    names = (*MODULES, "pictures", "report", "rows", "schedule", "sharing", "worker")
    yield Namespace(**{name: importlib.import_module(f"cost.{name}") for name in names})
    sys.path.remove(str(BENCHMARKS))


# --- counting


def test_flops_of_linear_layers_in_every_form(cost):
    x, weight = torch.rand(5, 7, 8, requires_grad=True), torch.rand(16, 8)
    with cost.meters.flop_counter() as counter:
        F.linear(x, weight).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 5 * 7 * 8 * 16  # forward, and the input's gradient
    if not torch.backends.mkldnn.is_available():
        return
    rows, linear = torch.rand(35, 8), torch.ops.mkldnn._linear_pointwise
    for form in (weight, torch.ops.mkldnn._reorder_linear_weight(weight, 35)):
        with cost.meters.flop_counter() as counter:
            out = linear(rows, form, None, "gelu", [], "none")
            linear.binary(rows, out, form, None, "add")
        assert counter.get_total_flops() == 2 * 2 * 35 * 8 * 16


def test_flops_of_attention(cost):
    batch, heads, tokens, depth = 3, 2, 16, 8
    query, key, value = torch.rand(3, batch, heads, tokens, depth).requires_grad_().unbind()
    mask = torch.zeros(1, heads, tokens, tokens)
    product = 2 * batch * heads * tokens * tokens * depth
    with cost.meters.flop_counter() as counter:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        assert counter.get_total_flops() == 2 * product
        out.sum().backward()
    assert counter.get_total_flops() == (2 + 5) * product


def test_peak_of_a_toy_step(cost):
    size = 2**20
    with cost.meters.track_peak(CPU) as peak:
        a = torch.empty(size, dtype=torch.uint8)
        b = torch.empty(2 * size, dtype=torch.uint8)
        del a
        c = torch.empty(size // 2, dtype=torch.uint8)
        del b, c
    assert peak.bytes == 3 * size

    layer, x, gradient = nn.Linear(64, 256, bias=False), torch.rand(4096, 64), torch.rand(4096, 256)
    with cost.meters.track_peak(CPU) as peak:
        out = layer(x)
        out.backward(gradient)
    assert peak.bytes == out.nbytes + layer.weight.grad.nbytes == 4 * (4096 * 256 + 64 * 256)


def test_resident_bytes(cost):
    layer = nn.Linear(10, 4)
    layer.packed = (torch.zeros(6, dtype=torch.int8),)
    layer.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([layer.weight])
    layer(torch.rand(1, 10)).sum().backward()
    optimizer.step()
    found = cost.meters.resident_bytes(layer, optimizer)
    assert found == {
        "weights": (10 * 4 + 4) * 4 + 6,
        "gradients": 10 * 4 * 4,
        "optimizer": 2 * 10 * 4 * 4 + 4,  # two averages and the number of steps
    }


def test_inner_parts_take_their_share_from_the_one_around(cost):
    clock = iter(range(100))
    division = cost.clock.Division(["outer", "inner"], lambda: next(clock))
    division.enter("outer")
    division.enter("inner")
    division.leave()
    division.leave()
    assert division.spent == {"outer": 2, "inner": 1}


# --- what follows from measurements


def step(seconds: float) -> dict:
    parts = {"forward_parts": {"trunk": seconds}, "backward_parts": {"backbone": seconds}}
    return {**dict.fromkeys(("forward", "backward", "update", "step"), seconds), **parts}


def make_row(method: str, rounds: list[float]) -> dict:
    return {
        "method": method,
        "title": method,
        "trained": 1,
        "share_of_backbone": 0.5,
        "saved_bytes": {"trunk": 2**20},
        "peak_bytes": 2**21,
        "resident_bytes": {"weights": 1, "optimizer": 1, "gradients": 1},
        "flops": {"forward": {"trunk": 10**9}, "backward": 10**9},
        "rounds": [step(seconds) for seconds in rounds],
    }


def make_table(cost, preset: str, rows: list[dict]) -> dict:
    setting = {"precision": "fp32", "framework": "none", "device": "cpu", "cap": None}
    size = {"height": 4, "width": 6, "batch": 1, "limits": {"flops": 1e9, "bytes": 1e9}}
    rows = cost.rows.with_ratios(rows)
    machine = cost.report.machine("cpu")
    return {"preset": preset, **setting, **size, "rows": rows, "machine": machine}


def test_ratios_are_taken_within_rounds(cost):
    rows = [make_row("full", [1.0, 2.0, 4.0]), make_row("e3va", [0.5, 1.5, 1.0])]
    rows.append({"method": "lora", "does_not_fit": "out of memory"})
    full, own, left_out = cost.rows.with_ratios(rows)
    assert full["ratios"]["step"] == [1.0, 1.0, 1.0]
    assert own["ratios"]["step"] == [0.5, 0.75, 0.25] and "ratios" not in left_out
    assert cost.rows.spread(own["ratios"]["step"]) == "0.50 (0.25–0.75)"
    assert cost.rows.seconds(own, "step") == 1.0
    assert "ratios" not in cost.rows.with_ratios([make_row("e3va", [1.0])])[0]


def test_runs_add_to_and_replace_each_other(cost, tmp_path):
    first = make_table(cost, "swin_t", [make_row("full", [1.0]), make_row("e3va", [0.5])])
    second = make_table(cost, "swin_l", [make_row("e3va", [0.5])])
    again = make_table(
        cost, "swin_t", [make_row("full", [2.0]), {"method": "lora", "does_not_fit": "no memory"}]
    )
    for table in (first, second, again):
        cost.report.add(tmp_path, table)
    tables = json.loads((tmp_path / "cost.json").read_text())["tables"]
    assert [table["preset"] for table in tables] == ["swin_t", "swin_l"]
    assert tables[0] == json.loads(json.dumps(again))
    text = (tmp_path / "cost.md").read_text()
    assert "lora: does not fit (no memory)" in text and "| e3va |" in text
    # 2 GFLOP at 1 GFLOP/s where a step took 0.5 s
    assert "| e3va | 1.0 | 1.0 | 2.0 | 2.000 | 0.500 | 400% |" in text
    assert (tmp_path / "cost_swin_t.png").stat().st_size > 1000


def test_a_foreign_file_is_left_alone(cost, tmp_path):
    (tmp_path / "cost.json").write_text("[]")
    with pytest.raises(UserError, match="was not written by this benchmark"):
        cost.report.load(tmp_path)


# --- the command

MISTAKES = {
    "--size 800": "--size 800: expected HEIGHTxWIDTH",
    "--size 0x32": "--size 0x32: expected HEIGHTxWIDTH",
    "--methods full magic": "method 'magic': expected some of full, frozen, lora",
    "--methods full-detectron2 --framework torchvision": "needs --framework detectron2",
    "--presets swin_q": "no Swin preset 'swin_q'",
    "--precision fp8": "--precision fp8: expected some of fp32, bf16, fp16",
    "--cap 24 --device cpu": "--cap 24 needs CUDA",
    "--batch none": "--batch none: expected a whole number above 0",
    "--framework jax": "--framework jax: expected detectron2 or torchvision",
    "--device abacus": "--device abacus:",
    "--speed": "unrecognized arguments: --speed",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_one_line(cost, capsys, tmp_path, arguments):
    assert cost.schedule.main("", [*arguments.split(), "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert MISTAKES[arguments] in said
    assert not list(tmp_path.iterdir())


SMALL = ["--presets", "swin_nano", "--size", "64x96", "--rounds", "1", "--device", "cpu"]


def run_small(cost, folder: Path, *more: str) -> list[dict]:
    arguments = [*SMALL, "--output", str(folder), *more]
    assert cost.schedule.main("", arguments) == 0
    return json.loads((folder / "cost.json").read_text())["tables"]


def check(table: dict) -> None:
    full, e3va, frozen = table["rows"]
    assert [row["method"] for row in table["rows"]] == ["full", "e3va_chain", "frozen"]
    assert full["loss"] == pytest.approx(e3va["loss"], rel=1e-4)  # the same proposals: equal work
    assert full["share_of_backbone"] == 1 > e3va["share_of_backbone"] > frozen["share_of_backbone"]
    assert full["saved_bytes"]["trunk"] > 0 == e3va["saved_bytes"]["trunk"]
    for part in ("neck", "heads"):
        assert full["saved_bytes"][part] == e3va["saved_bytes"][part] > 0
    assert full["flops"]["backward"] > e3va["flops"]["backward"] > frozen["flops"]["backward"]
    for row in table["rows"]:
        assert row["peak_bytes"] >= row["resident_bytes"]["gradients"]
        # Two averages of every trained parameter that gets gradients, and a number of steps each.
        assert row["resident_bytes"]["optimizer"] >= 2 * row["resident_bytes"]["gradients"]
        (only,) = row["rounds"]
        assert min(only["forward_parts"].values()) > 0
        # Disjoint pieces of the forward pass; how much lies between them, a busy machine decides.
        assert sum(only["forward_parts"].values()) <= only["forward"]
        assert set(only["backward_parts"]) == {"heads", "neck", "backbone"}
        assert min(only["backward_parts"].values()) > 0
        assert sum(only["backward_parts"].values()) == pytest.approx(only["backward"])
        assert row["ratios"]["step"] == [only["step"] / full["rounds"][0]["step"]]


class Here:
    """A worker that computes in this process: real ones are in the test of the growth."""

    def __init__(self, cost, spec):
        self.cost, self.spec = cost, spec

    def send(self, command):
        assert command == "build"

    def receive(self):
        self.bench = self.cost.bench.Bench(self.spec)
        return self.bench.facts()

    def ask(self, command):
        return getattr(self.bench, command)()

    def close(self):
        pass


@pytest.fixture
def small_work(cost, monkeypatch):
    """Measure in this process, with small heads and small matrices."""
    monkeypatch.setattr(cost.schedule, "Worker", lambda spec: Here(cost, spec))
    for name, value in (("SIDE", {"cpu": 256}), ("TRIES", 1), ("COPIED", 2**20)):
        monkeypatch.setattr(cost.limits, name, value)
    if not util.find_spec("detectron2"):
        return
    detectron2 = importlib.import_module("e3va.detectron2")
    load = detectron2.load_config

    def small(name):
        cfg = load(name)
        rpn, heads = cfg.model.proposal_generator, cfg.model.roi_heads
        rpn.pre_nms_topk, rpn.post_nms_topk, heads.batch_size_per_image = [50] * 2, [30] * 2, 16
        heads.mask_head.conv_dims = [16, 16]
        for head, predictor in zip(heads.box_heads, heads.box_predictors, strict=True):
            head.fc_dims, predictor.input_shape.channels = [32], 32
        return cfg

    monkeypatch.setattr(detectron2, "load_config", small)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torchvision", "detectron2"])
def test_a_detector_from_end_to_end(cost, tmp_path, framework, small_work):
    pytest.importorskip(framework)
    size = "64x96" if framework == "torchvision" else "32x48"  # for the sake of time
    more = ["--methods", "e3va_chain", "full", "frozen", "--framework", framework, "--size", size]
    (table,) = run_small(cost, tmp_path, *more)
    check(table)
    assert table["limits"]["flops"] > 1e8 and table["limits"]["bytes"] > 1e7
    assert (tmp_path / "cost_swin_nano.png").is_file()
    assert f"swin_nano, fp32, 1 × {size.replace('x', '×')}, {cost.rows.FRAMEWORKS[framework]}" in (
        (tmp_path / "cost.md").read_text()
    )


@pytest.mark.slow
def test_growth_from_end_to_end(cost, tmp_path):
    arguments = [*SMALL, "--growth", "--backbone", "--sizes", "32", "64", "--batches", "1", "2"]
    arguments += ["--side", "32", "--methods", "e3va_chain", "--output", str(tmp_path)]
    assert cost.schedule.main("", arguments) == 0
    ((table,),) = json.loads((tmp_path / "growth.json").read_text()).values()
    (row,) = table["rows"]
    small, large = (point["saved"] for point in row["side"])
    assert large == pytest.approx(4 * small, rel=0.05)
    assert [point["batch"] for point in row["batch"]] == [1, 2]
    assert row["batch"][0]["saved"] == small and row["batch"][1]["peak"] > row["batch"][0]["peak"]
    assert (tmp_path / "growth.md").is_file() and (tmp_path / "growth.png").is_file()


# --- methods


def bench(cost, method: str, **more):
    spec = {"preset": "swin_nano", "precision": "fp32", "framework": "none", "device": "cpu"}
    return cost.bench.Bench(cost.models.Spec(method, **{**spec, **more}, height=32, width=48))


def test_methods_train_what_they_say_and_start_equal(cost):
    losses, shares = {}, {}
    for name in ("full", "lora", "bottleneck", "e3va_chain plain", "e3va_chain", "frozen plain"):
        one = bench(cost, name, rank=4)
        facts, found = one.facts(), one.count()
        losses[name], shares[name] = found["loss"], facts["share_of_backbone"]
        if name == "lora":
            highway = one.subject.bottom_up.highway
            names = {n for n, p in highway.named_parameters() if ".lora_" in n and len(p) == 4}
            assert len(names) == 2 * sum(highway.stages[s].inside.__len__() for s in range(4))
            assert facts["title"] == "LoRA, rank 4"
    assert all(loss == pytest.approx(losses["full"], rel=1e-4) for loss in losses.values())
    assert shares["full"] == 1 and all(s < 0.1 for n, s in shares.items() if n != "full")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_steps_change_nothing_in_any_precision(cost, precision):
    one = bench(cost, "full", precision=precision)
    before = {k: v.clone() for k, v in one.subject.model.state_dict().items()}
    one.count()
    one.round()
    assert one.peak()["resident_bytes"]["optimizer"] > 0
    assert all(torch.equal(v, before[k]) for k, v in one.subject.model.state_dict().items())
    assert all(p.grad is None for p in one.subject.model.parameters())


def test_the_drawn_batch_is_the_same_each_time(cost):
    one, same, other = (cost.batch.draw(40, 56, seed) for seed in (0, 0, 1))
    assert torch.equal(one.image, same.image) and one.polygons == same.polygons
    assert not torch.equal(one.image, other.image) and one.image.shape == (3, 40, 56)
    boxes = one.boxes
    assert boxes.shape == (cost.batch.OBJECTS, 4) and (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all() and (boxes <= torch.tensor([56, 40, 56, 40])).all()
    _, (target,) = cost.batch.torchvision_examples([one], CPU)
    assert target["masks"].flatten(1).any(1).all() and target["labels"].min() >= 1


def test_equal_frozen_weights_are_in_memory_once(cost, tmp_path):
    torch.manual_seed(0)
    one, x = nn.Sequential(nn.Linear(512, 256), nn.Linear(256, 512)), torch.rand(3, 512)
    one[0].requires_grad_(False)
    same = copy.deepcopy(one)
    before = one(x)
    for model in (one, same):
        cost.sharing.share_frozen(model, tmp_path)
    (file,) = tmp_path.iterdir()  # the frozen matrix; its bias is small, the other matrix trains
    assert file.stat().st_size == 512 * 256 * 4
    assert torch.equal(one(x), before) and torch.equal(same(x), before)
    with torch.no_grad():
        same[0].weight[0, 0] = 7.0
    assert one[0].weight[0, 0] == 7.0


class Full:
    """A worker without memory."""

    closed = False

    def ask(self, *_):
        raise self.error("out of memory")

    def close(self):
        self.closed = True


def test_a_method_that_does_not_fit_is_a_row(cost):
    said = []
    args = Namespace(methods=["full", "e3va"], rounds=1, rank=16)
    table = cost.schedule.Table(None, args, said.append)
    worker = Full()
    worker.error = cost.worker.DoesNotFitError
    table.workers["full"] = worker
    for command in ("count", "round"):
        table._take("full", command, table._asking("full", command))
    assert worker.closed and not table.workers and said == ["full, count", "full, round"]
    assert table.rows["full"] == {"method": "full", "does_not_fit": "out of memory"}


def test_what_counts_as_out_of_memory(cost):
    known = cost.worker.out_of_memory
    assert known(torch.OutOfMemoryError("CUDA out of memory. Tried to")) == "CUDA out of memory"
    assert known(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert known(RuntimeError("shapes cannot be multiplied")) is None
