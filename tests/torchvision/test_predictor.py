"""Batches, threads, precision and tiles change how fast images are predicted, not what is found."""

import json
import threading
import time

import pytest
import torch
from PIL import Image

from e3va import UserError
from e3va.cli.main import main
from e3va.data.images import in_order
from e3va.torchvision.data import to_tensor
from e3va.torchvision.predict import predict_images
from e3va.torchvision.predictor import PredictOptions, Predictor, _Room, split_threads
from e3va.torchvision.tiles import Tiling
from e3va.torchvision.transform import detect


def write_images(folder, sizes):
    """Write noisy images of sizes (width, height) as 1.png, 2.png, …"""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    for number, (width, height) in enumerate(sizes, 1):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


SIZES = [(64, 48), (48, 64), (64, 48), (64, 48), (40, 40), (48, 64)]


@pytest.fixture
def trained(make_small):
    """Return a model that finds several objects, and its config."""
    config, model = make_small("mask_rcnn", size=48)
    model.eval().roi_heads.score_thresh = 0.3
    model.roi_heads.detections_per_img = 5
    return model, config


def predict(trained, images, folder, **options):
    model, config = trained
    failed = predict_images(model, config, images, folder, 0.0, PredictOptions(**options))
    found = json.loads((folder / "predictions.json").read_text())
    return failed, found


def test_several_at_once_write_the_same_files(trained, tmp_path, monkeypatch, capsys):
    images = write_images(tmp_path / "photos", SIZES)
    predict(trained, images, tmp_path / "one")
    before = capsys.readouterr().out.replace(str(tmp_path / "one"), "")
    monkeypatch.setattr(Predictor, "workers", lambda self, count: 3)
    predict(trained, images, tmp_path / "three")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")
    assert capsys.readouterr().out.replace(str(tmp_path / "three"), "") == before


def test_one_image_in_a_call_is_predicted_to_the_bit(trained):
    model, _ = trained
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    with torch.no_grad():
        expected = detect(model, to_tensor(picture), 0.31)
    (found,) = Predictor({"own": model}, 0.31, PredictOptions()).predict([image])
    assert len(expected["scores"]) > 2
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(found["own"][name], expected[name])
    assert found["own"]["masks"].records == expected["masks"].records


def test_batches_are_of_equal_sizes_and_change_only_the_rounding(trained, tmp_path):
    images = write_images(tmp_path / "photos", SIZES)
    images[3].write_text("no image")
    failed, one = predict(trained, images, tmp_path / "one")
    shapes = []
    handle = trained[0].register_forward_pre_hook(
        lambda _, inputs: shapes.append([tuple(image.shape[1:]) for image in inputs[0]])
    )
    failed_too, several = predict(trained, images, tmp_path / "several", batch_size=2)
    handle.remove()
    assert sorted(shapes) == [[(40, 40)], [(48, 64)] * 2, [(64, 48)] * 2]
    assert failed == failed_too and len(failed) == 1 and "4.png" in failed[0]
    assert one["images"] == several["images"] and len(one["annotations"]) == 25
    assert [image["id"] for image in one["images"]] == [1, 2, 3, 5, 6]
    for own, other in zip(one["annotations"], several["annotations"], strict=True):
        assert own["image_id"] == other["image_id"] and own["id"] == other["id"]
        assert own["score"] == pytest.approx(other["score"], abs=1e-4)
        assert own["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_half_precision_keeps_the_boxes_places(kind, make_small):
    _, model = make_small(kind, size=300, max_size=400)
    model.eval().roi_heads.score_thresh = 0.0
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    (found,) = Predictor({"": model}, 0.0, PredictOptions(precision="bf16")).predict([image])
    boxes = found[""]["boxes"]
    inside = boxes[(boxes > 130) & (boxes < 299)]
    # In bfloat16, all numbers from 128 to 256 are whole, and all above are even.
    assert boxes.dtype == torch.float32 and len(inside) > 10
    assert (inside != inside.round()).float().mean() > 0.8


def test_smaller_images_are_not_cut(trained, tmp_path):
    images = write_images(tmp_path / "photos", [(64, 48), (48, 64)])
    _, expected = predict(trained, images, tmp_path / "one")
    _, found = predict(trained, images, tmp_path / "tiles", tiling=Tiling(64, 8))
    assert found == expected
    assert files_of(tmp_path / "one") == files_of(tmp_path / "tiles")


def test_several_adapters_predict_tiles(make_trained, tmp_path):
    write_images(tmp_path / "photos", [(100, 70)])
    make_trained("mask_rcnn", "fruit")
    make_trained("semantic_fpn", "leaves")
    words = ["predict", tmp_path / "fruit", tmp_path / "leaves", "--input", tmp_path / "photos"]
    words += ["--tile", "64", "--overlap", "16", "--threshold", "0", "--batch-size", "3"]
    words += ["--max-detections", "5"]
    assert main([str(word) for word in [*words, "--output", tmp_path / "both"]]) == 0
    for name in ("fruit", "leaves"):
        own = [*words[:1], tmp_path / name, *words[3:], "--output", tmp_path / "own"]
        assert main([str(word) for word in own]) == 0
        assert files_of(tmp_path / "own") == files_of(tmp_path / "both" / name)
        for path in (tmp_path / "own").rglob("*.*"):
            path.unlink()
    with Image.open(tmp_path / "both/leaves/labels/1.png") as labels:
        assert labels.size == (100, 70)


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        (("--tile", "31"), ("--tile 31", "32")),
        (("--tile", "64", "--overlap", "64"), ("--overlap 64", "--tile 64", "63")),
        (("--overlap", "8"), ("--overlap 8", "--tile")),
    ],
)
def test_impossible_flags_are_one_line(flags, values, tmp_path, capsys):
    assert main(["predict", "model.pth", "--input", str(tmp_path), *flags]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(value in error for value in values), error


def test_impossible_options_are_one_line():
    for options in ({"batch_size": 0}, {"precision": "int4"}):
        with pytest.raises(UserError, match=str(*options.values())):
            PredictOptions(**options)


def test_results_come_in_order_and_few_items_wait():
    drawn, done = [], []

    def items():
        for number in range(20):
            drawn.append(number)
            yield number

    def work(number):
        time.sleep(0.02 * (number % 3 == 0))
        done.append(number)
        return number

    for number, result in enumerate(in_order(work, items(), threads=3)):
        assert result == number and len(drawn) <= number + 8
    assert sorted(done) == drawn == list(range(20))


def test_an_error_ends_the_work():
    done = []

    def work(number):
        if number == 2:
            raise UserError("full disk")
        done.append(number)

    for threads in (1, 3):
        with pytest.raises(UserError, match="full disk"):
            list(in_order(work, range(1000), threads))
        assert max(done) < 20


def test_large_images_are_in_work_one_after_another():
    room, inside, most = _Room(10), [], []

    def hold(pixels):
        with room.hold(pixels):
            inside.append(pixels)
            most.append(sum(inside))
            time.sleep(0.01)
            inside.remove(pixels)

    threads = [threading.Thread(target=hold, args=(n,)) for n in (4, 50, 4, 6, 50, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 6 and all(total <= 10 or total == 50 for total in most)


def test_workers_divide_the_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with split_threads(2) as workers:
            found = list(in_order(lambda _: torch.get_num_threads(), range(4), workers))
        assert found == [2] * 4 and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
