"""Adapters that share a pass of the trunk predict what each predicts in a call of its own."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from e3va import E3VABackbone, UserError
from e3va.adapter_files.adapter_set import AdapterSet
from e3va.cli.main import main
from e3va.swin.shared_passes import share_passes
from e3va.torchvision import load_adapters, load_model
from e3va.torchvision.predict_all import plan_text, side_by_side

from ..conftest import write_trunk


def image(seed=3):
    return torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(seed))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def count_passes(trunk) -> list:
    """Return a list to which each pass of the trunk appends an item."""
    passes = []
    trunk.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


@pytest.mark.parametrize("memory", ["plain", "standard", "lean"])
def test_one_pass_gives_each_adapter_its_own_results(make_trained, tmp_path, memory):
    make_trained("mask_rcnn", "a", memory=memory)
    make_trained("semantic_fpn", "bb", memory=memory, classes=("x", "y", "z"))
    make_trained("retinanet", "ccc", memory=memory)  # it reads no level p0
    make_trained("mask_rcnn", "dddd", memory=memory, highway="frozen")  # it reads no taps
    paths = {name: tmp_path / name for name in ("a", "bb", "ccc", "dddd")}
    models = load_adapters(paths)
    models.set_adapter("bb")
    expected = {}
    for name, path in paths.items():
        with torch.no_grad():
            expected[name] = load_model(path)[0]([image()])[0]
    passes = count_passes(models.trunk)
    found = models.predict_all([image()])
    assert len(passes) == 1 and models.passes == [[*paths]]
    assert [*found] == [*paths] and models.active == "bb"
    for name, (own,) in found.items():
        assert same(own, expected[name]), name
        assert not any(value.requires_grad for value in own.values())
    models([image()])
    assert len(passes) == 2  # nothing is shared outside


def test_passes_are_shared_only_among_those_that_agree(make_trained, tmp_path):
    make_trained("semantic_fpn", "a")
    make_trained("semantic_fpn", "bb", size=48)
    make_trained("semantic_fpn", "ccc")
    make_trained("semantic_fpn", "dddd", highway={"recipe": "e3va", "rank": 8})  # other taps
    make_trained("semantic_fpn", "eeeee", memory="plain")
    paths = {name: tmp_path / name for name in ("a", "bb", "ccc", "dddd", "eeeee")}
    models = load_adapters(paths)
    passes = count_passes(models.trunk)
    found = models.predict_all([image()])
    assert models.passes == [["a", "ccc"], ["bb"], ["dddd"], ["eeeee"]] and len(passes) == 4
    for name, path in paths.items():
        with torch.no_grad():
            assert same(found[name][0], load_model(path)[0]([image()])[0]), name
    assert (
        plan_text(models.passes) == "4 passes of the trunk for 5 adapters: a, ccc; bb; dddd; eeeee"
    )


def test_threads_do_not_mix_their_images(make_trained, tmp_path):
    make_trained("semantic_fpn", "a")
    make_trained("mask_rcnn", "bb")
    models = load_adapters({name: tmp_path / name for name in ("a", "bb")})
    expected = [models.predict_all([image(seed)]) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: models.predict_all([image(n % 4)]), range(16)))
    for number, one in enumerate(found):
        for name in ("a", "bb"):
            assert same(one[name][0], expected[number % 4][name][0])


def test_another_trunk_does_not_read_the_pass():
    one, two = E3VABackbone("swin_nano"), E3VABackbone("swin_nano")
    images = torch.rand(1, 3, 64, 64)
    expected = two(images)
    with share_passes(one.trunk) as passes:
        one(images)
        found = two(images)
        assert passes.readers == [[""]]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_no_adapter_is_one_line():
    trunk = E3VABackbone("swin_nano").trunk
    with pytest.raises(UserError, match="no adapter is loaded"):
        AdapterSet(trunk, lambda: None).predict_all([image()])


def test_pictures_stand_side_by_side():
    red = torch.zeros(3, 40, 60, dtype=torch.uint8)
    red[0] = 255
    sheet = side_by_side({"one": red, "two": red[:, ::2, ::2].flip(0)})
    assert sheet.shape == (3, 26 + 40, 60 + 6 + 60) and sheet.dtype == torch.uint8
    assert sheet[:, 40, 30].tolist() == [255, 0, 0] and sheet[:, 40, 100].tolist() == [0, 0, 255]
    assert sheet[:, 40, 63].tolist() == [255, 255, 255]


# --- the command


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("p.png", "q.png"):
        Image.new("RGB", (64, 48), (90, 60, 30)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def predict(tmp_path, photos, *models, more=()):
    words = ["predict", *models, "--input", photos, "--output", tmp_path / "out", *more]
    return main([str(word) for word in words])


def test_the_command_draws_each_and_all(make_trained, tmp_path, photos, capsys):
    make_trained("mask_rcnn", "fruit")
    make_trained("semantic_fpn", "leaves")
    more = ("--threshold", "0", "--max-detections", "3")
    models = tmp_path / "fruit", tmp_path / "leaves" / "adapter_config.json"
    assert predict(tmp_path, photos, *models, more=more) == 0
    said = capsys.readouterr().out
    assert said.count("1 pass of the trunk for 2 adapters: fruit, leaves") == 1
    out = tmp_path / "out"
    for name in ("p.png", "q.png"):
        for folder in ("fruit", "leaves", "leaves/labels", "together"):
            assert (out / folder / name).is_file(), folder
    assert (out / "fruit" / "predictions.json").is_file()
    single = tmp_path / "single"
    words = ["predict", tmp_path / "fruit", "--input", photos, "--output", single, *more]
    assert main(list(map(str, words))) == 0
    for name in ("p.png", "predictions.json"):
        assert (single / name).read_bytes() == (out / "fruit" / name).read_bytes()


def test_mistakes_with_several_adapters_are_one_line(
    make_trained, pretrained, tmp_path, photos, capsys
):
    make_trained("semantic_fpn", "a")
    (tmp_path / "old").mkdir()
    (tmp_path / "together").mkdir()
    make_trained("semantic_fpn", "old/a")
    write_trunk(pretrained, seed=6)
    for name in ("bb", "together"):
        make_trained("semantic_fpn", name)
    for models, values in (
        (("a", "old/a"), ("same name", "'a'")),
        (("a", "a"), ("same name", "'a'")),
        (("a", "bb"), ("was trained on the trunk",)),
        (("a", "a/model.pth"), ("a/model.pth", "whole model")),
        (("a", "nowhere"), ("nowhere",)),
        (("bb", "together"), ("'together'", "rename")),
    ):
        assert predict(tmp_path, photos, *(tmp_path / name for name in models)) == 1, models
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and all(value in error for value in values), error
        assert not (tmp_path / "out").exists()
    (photos / "p.png").write_text("no image")
    make_trained("mask_rcnn", "ccc")
    assert predict(tmp_path, photos, tmp_path / "bb", tmp_path / "ccc") == 1
    assert "p.png" in capsys.readouterr().err and (tmp_path / "out/together/q.png").is_file()
