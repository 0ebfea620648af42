"""Trainings start from trunks of any layout and window and from adapters, and write adapters."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torchvision.models.swin_transformer import SwinTransformer

from e3va import PRESETS, SwinTrunk, UserError
from e3va.adapter_files.files import CONFIG_FILE, FULL_KEY, MODEL_FILE, read_adapter
from e3va.cli.main import main
from e3va.torchvision import load_model
from e3va.torchvision.options import resumed_options
from e3va.torchvision.trainer import Trainer, read_state

from ..cli.test_cli import fails
from ..conftest import write_trunk

SHORT = ["--highway", "rank=4", "--size", "64", "--steps", "2", "--seed", "3"]


@pytest.fixture
def train(drawn, tmp_path, capsys):
    """Return a function that runs ``e3va train`` on drawn data and returns its output."""

    def run(output, *options, data=("--annotations", drawn.json), short=SHORT):
        paths = ["--images", drawn.images, *data, "--output", tmp_path / output]
        assert main([str(a) for a in ["train", *paths, *short, *options]]) == 0
        return capsys.readouterr().out

    return run


def read(path):
    return torch.load(path, weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def highway(state):
    return {k: v for k, v in state.items() if ".highway." in k}


@pytest.mark.slow
def test_every_command_reads_the_adapter_of_a_training(train, drawn, pretrained, tmp_path, capsys):
    validation = ["--val-images", drawn.images, "--val-annotations", drawn.json]
    text = train("out", "--trunk", pretrained, *validation)
    folder, model = tmp_path / "out", tmp_path / "out" / "model.pth"
    assert f"wrote {folder / MODEL_FILE}" in text
    data = ["--images", drawn.images, "--annotations", drawn.json]
    scores = []
    for name in (model, folder, folder / CONFIG_FILE):
        arguments = ["eval", name, *data, "--output", tmp_path / "scores.json"]
        assert main([str(a) for a in arguments]) == 0
        scores.append(json.loads((tmp_path / "scores.json").read_text())["scores"])
    assert scores[0] == scores[1] == scores[2]
    assert read_adapter(folder)[1].scores == scores[0]
    arguments = ["predict", folder, "--input", drawn.images / "1.png", "--threshold", "0"]
    found = []
    for name in (model, folder):
        arguments = [*arguments[:1], name, *arguments[2:], "--output", tmp_path / "p"]
        assert main([str(a) for a in arguments]) == 0
        found.append((tmp_path / "p" / "predictions.json").read_text())
    assert found[0] == found[1] and len(json.loads(found[0])["annotations"]) > 3
    capsys.readouterr()
    assert main(["info", str(folder)]) == 0
    text = capsys.readouterr().out
    trunk = read_adapter(folder)[1].trunk
    for part in (
        "torchvision",
        "mask_rcnn",
        "swin_nano",
        "red, blue",
        "6 images",
        trunk.fingerprint,
    ):
        assert part in text, text
    assert "rank 4" in text and "trunk         swin.pth" in text
    assert f"AP mask       {scores[0]['AP mask']:.1f}" in text
    state = read_adapter(folder)[0]
    in_highway = sum(t.numel() for t in highway(state).values())
    after = sum(t.numel() for t in state.values()) - in_highway
    assert f"highway       {in_highway:,} numbers" in text
    assert f"neck, heads   {after:,} numbers" in text
    assert main(["info", str(folder), "--trunk", str(pretrained)]) == 0
    assert "swin.pth is the trunk" in capsys.readouterr().out
    other = write_trunk(tmp_path / "other.pth", seed=8)
    fails(capsys, ["info", folder, "--trunk", other], "fingerprint .*fingerprint")
    fails(capsys, ["eval", folder, *data, "--trunk", other], "fingerprint .*fingerprint")
    assert main(["info", str(folder), "--trunk", str(other), "--any-trunk"]) == 0
    assert "other.pth is NOT the trunk" in capsys.readouterr().out
    arguments = ["eval", folder, *data, "--trunk", other, "--any-trunk"]
    assert main([str(a) for a in arguments]) == 0


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--recipe", "full"], "the trunk trains too"),
        (["--trunk", "random", "--preset", "swin_nano"], "its trunk is random"),
    ],
)
def test_without_a_trunk_to_share_no_adapter_is_written(
    options, reason, train, pretrained, tmp_path
):
    start = [] if "--trunk" in options else ["--trunk", pretrained]
    short = SHORT[2:] if "full" in options else SHORT
    text = train("out", *start, *options, short=short)
    lines = [line for line in text.splitlines() if reason in line]
    assert len(lines) == 1 and lines[0].startswith("no adapter files are written: ")
    assert not (tmp_path / "out" / MODEL_FILE).exists()
    load_model(tmp_path / "out" / "model.pth")


@pytest.mark.parametrize("options, stored", [
    (["--precision", "bf16", "--trunk-precision", "bf16"], "bf16"),
    (["--precision", "bf16", "--trunk-precision", "bf16", "--memory", "lean"], "int8 bf16"),
])  # fmt: skip
def test_a_resumed_run_records_the_trunk_of_its_start(
    options, stored, train, drawn, pretrained, tmp_path, monkeypatch
):
    train("whole", "--trunk", pretrained, *options)
    step = Trainer.after_step

    def stop(self):
        step(self)
        if self.step == 1:
            self.save()
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "after_step", stop)
    with pytest.raises(AssertionError):  # by the exit status of an interrupted command
        train("parts", "--trunk", pretrained, *options)
    monkeypatch.undo()
    assert read(tmp_path / "parts" / "training.pth")[FULL_KEY]["trunk"]["stored"] == stored
    pretrained.unlink()  # all is in the checkpoint
    train("parts", "--resume")
    one, other = (read_adapter(tmp_path / name) for name in ("whole", "parts"))
    assert same(one[0], other[0]) and one[1] == other[1] and one[1].trunk.stored == stored
    for name in ("training.pth", "model.pth"):
        assert read(tmp_path / "parts" / name)[FULL_KEY]["trunk"] == vars(one[1].trunk)


def test_an_adapter_starts_a_training_on_other_classes(
    train, drawn, drawn_labels, make_trained, tmp_path, capsys
):
    make_trained("mask_rcnn", "fruit", highway={"recipe": "e3va", "rank": 8})
    expected = highway(read_adapter(tmp_path / "fruit")[0])
    labels = ("--labels", drawn_labels)
    short = ["--size", "48", "--steps", "1", "--lr", "1e-30"]  # what it starts from stays
    text = train("out", "--adapter", tmp_path / "fruit", data=labels, short=short)
    assert "its backbone part; neck and heads" in text
    state, about = read_adapter(tmp_path / "out")
    assert about.backbone == read_adapter(tmp_path / "fruit")[1].backbone
    assert about.trunk == read_adapter(tmp_path / "fruit")[1].trunk  # found beside the adapter
    ours = highway(state)
    assert ours.keys() == expected.keys()
    assert all(torch.allclose(ours[k], expected[k], atol=1e-6) for k in ours)
    assert any(v.abs().max() > 0.01 for k, v in ours.items() if ".u2." in k)
    stored = read(tmp_path / "out" / "training.pth")["data"]["options"]
    assert stored["adapter"] == str(tmp_path / "fruit") and stored["highway"]["recipe"] == "e3va"
    train("out", "--resume", data=labels, short=[])
    arguments = ["train", "--output", tmp_path / "out", "--resume", "--adapter", tmp_path]
    fails(capsys, arguments, "--adapter .*, but the run in .* has .*fruit")


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_an_adapter_of_the_same_classes_starts_with_its_heads_too(
    kind, train, make_trained, tmp_path
):
    make_trained(kind, "fruit", classes=("red", "blue"))
    short = ["--size", "48", "--steps", "1", "--lr", "1e-30"]
    text = train("out", "--adapter", tmp_path / "fruit", short=short)
    assert "fruit: the whole adapter" in text
    before, after = (read_adapter(tmp_path / name)[0] for name in ("fruit", "out"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)
    if kind == "mask_rcnn":  # or with another --model
        start = ("--adapter", tmp_path / "fruit", "--model", "cascade_mask_rcnn")
        assert "its backbone part" in train("other", *start, short=short)


def test_mistakes_with_an_adapter_to_start_from_give_one_line(
    drawn, make_trained, pretrained, tmp_path, capsys
):
    make_trained("mask_rcnn", "fruit")
    data = ["--images", drawn.images, "--annotations", drawn.json, "--output", tmp_path / "out"]
    start = ["train", *data, "--size", "48", "--steps", "1", "--adapter", tmp_path / "fruit"]
    other = write_trunk(tmp_path / "other.pth", seed=8)
    fails(capsys, [*start, "--trunk", other], "fingerprint .*fingerprint .*--any-trunk")
    fails(capsys, [*start, "--trunk", "random"], "fingerprint .*fingerprint")
    fails(capsys, [*start, "--highway", "rank=7"], "rank 4, not 7")
    fails(capsys, [*start, "--recipe", "full"], "e3va_chain, not full")
    fails(capsys, [*start[:-1], tmp_path], "no adapter_model.safetensors in")
    fails(capsys, [*start[:-1], "e3va://nothing"], "nothing")
    pretrained.unlink()
    fails(capsys, start, "swin.pth .*--trunk")
    assert main([str(a) for a in [*start, "--trunk", other, "--any-trunk"]]) == 0
    trunk = read_adapter(tmp_path / "out")[1].trunk
    assert trunk.source == "other.pth"


def test_a_preset_gives_the_window_and_a_wrong_one_is_an_error(train, drawn, tmp_path, capsys):
    narrow = write_trunk(tmp_path / "narrow.pth", 4, preset="swin_nano")
    data = read(narrow)["model"]
    wide = SwinTrunk(replace(PRESETS["swin_nano"], window=5)).state_dict()
    state = {
        k: v if wide[k].shape == v.shape else torch.randn_like(wide[k]) for k, v in data.items()
    }
    torch.save({"model": state}, tmp_path / "wide.pth")
    text = train("out", "--trunk", tmp_path / "wide.pth", "--preset", "swin_nano")
    assert "of window 5, were interpolated to the model's window 4" in text
    loaded, config = load_model(tmp_path / "out")  # interpolated again, with the same fingerprint
    assert config.preset.window == 4
    assert same(loaded.state_dict(), load_model(tmp_path / "out" / "model.pth")[0].state_dict())
    plain = train("plain", "--trunk", tmp_path / "wide.pth")
    assert "interpolated" not in plain and read_adapter(tmp_path / "plain")[1].backbone.preset == (
        replace(PRESETS["swin_nano"], window=5, pretrain_size=0)
    )
    paths = ["--images", drawn.images, "--annotations", drawn.json, "--output", tmp_path / "no"]
    arguments = ["train", *paths, "--trunk", narrow, "--preset", "swin_t"]
    fails(capsys, arguments, "holds .* swin_nano .* trunk is swin_t .*preset to swin_nano")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_weights_of_other_libraries_are_trunks(library, train, tmp_path, capsys):
    torch.manual_seed(1)
    sizes = {"depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
    if library == "timm":
        timm = pytest.importorskip("timm")
        swin = timm.models.swin_transformer.SwinTransformer(
            img_size=256, window_size=4, embed_dim=16, **sizes
        )
    else:
        swin = SwinTransformer([4, 4], 16, window_size=[4, 4], **sizes)
    path = tmp_path / "weights.pth"
    torch.save(swin.state_dict(), path)
    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"layout        {library}" in text and "holds the Swin swin_nano" in text
    digest = re.search(r"fingerprint +([0-9a-f]{64})\n", text)[1]
    train("out", "--trunk", path)
    about = read_adapter(tmp_path / "out")[1]
    assert (about.trunk.source, about.trunk.fingerprint) == ("weights.pth", digest)


def test_the_zoo_is_part_of_the_command(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("E3VA_ZOO", str(tmp_path / "zoo"))
    train("out")  # on the demonstration's trunk
    arguments = [
        "zoo",
        "publish",
        tmp_path / "out",
        "--name",
        "rectangles",
        "--to",
        tmp_path / "zoo",
    ]
    assert main([str(a) for a in arguments]) == 0
    assert main(["zoo", "list"]) == 0
    assert "rectangles" in capsys.readouterr().out
    model, config = load_model("e3va://rectangles")
    assert config.trunk == "demo"
    assert same(model.state_dict(), load_model(tmp_path / "out" / "model.pth")[0].state_dict())
    assert main(["info", "e3va://rectangles"]) == 0
    assert "swin_mini" in capsys.readouterr().out
    text = train("again", "--adapter", "e3va://rectangles")
    assert "starts from e3va://rectangles: the whole adapter" in text
    train("named", "--trunk", "swin_mini")
    about = read_adapter(tmp_path / "named")[1]
    assert about.trunk.source == "e3va://swin_mini"
    assert about.trunk.fingerprint == read_adapter(tmp_path / "out")[1].trunk.fingerprint
    assert load_model(tmp_path / "named")[1].trunk == "e3va://swin_mini"


def test_resume_takes_the_command_of_a_run_with_an_adapter_and_a_changed_highway(train, tmp_path):
    """The settings may be given as changes, or as a whole with their recipe."""
    train("a", "--recipe", "e3va")
    train("b", "--adapter", str(tmp_path / "a"))
    train("b", "--adapter", str(tmp_path / "a"), "--resume")
    train("b", "--recipe", "e3va", "--highway", "rank=4", "reduction=4", "--resume")
    with pytest.raises(UserError, match="rank 5.*rank 4"):
        resumed_options({"highway": {"rank": 5}}, read_state(tmp_path / "b"), tmp_path / "b")


@pytest.mark.parametrize("settings", [["recipe=e3va"], ["rank=3", "rank=4"]])
def test_a_setting_of_the_highway_is_given_once(settings, drawn, capsys):
    fails(capsys, ["train", "--images", drawn.images, "--highway", *settings], settings[-1])
