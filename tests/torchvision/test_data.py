"""Targets agree with the data files, and a mistake in a file gives one clear line."""

import json

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image

from e3va import UserError
from e3va.data.coco import ReadOptions
from e3va.torchvision.data import (
    TrainMapper,
    coco_dataset,
    label_dataset,
    read_example,
)
from e3va.utils.seeding import seed_everything


def test_targets_equal_the_file(instances, drawn):
    for record in instances.records:
        image, target = read_example(record, instances)
        assert (
            image.shape == (3, record["height"], record["width"]) and image.dtype == torch.float32
        )
        assert image.min() >= 0 and image.max() <= 1
        own = [a for a in drawn.data["annotations"] if a["image_id"] == record["id"]]
        for a, box, label, mask in zip(own, *target.values(), strict=True):
            x, y, w, h = a["bbox"]
            assert box.tolist() == [x, y, x + w, y + h]
            assert label == {3: 1, 7: 2}[a["category_id"]]  # by id, whatever the file's order
            expected = torch.zeros_like(mask)
            expected[y : y + h, x : x + w] = 1
            assert torch.equal(mask, expected)
            assert instances.classes[label - 1] == {3: "red", 7: "blue"}[a["category_id"]]
    assert instances.category_ids == (3, 7)


def test_flips_move_image_boxes_and_masks_together(instances):
    record = instances.records[0]
    image, target = read_example(record, instances)
    mapper, kinds = TrainMapper(instances), set()
    for seed in range(12):
        seed_everything(seed)
        flipped, own = mapper(record)
        masks, unflipped = own.pop("masks").stack(), target["masks"].stack()
        assert all(type(v) is torch.Tensor for v in (flipped, *own.values()))
        if torch.equal(flipped, image):
            kinds.add("as it was")
            assert all(torch.equal(own[k], target[k]) for k in own)
            assert torch.equal(masks, unflipped)
            continue
        kinds.add("flipped")
        assert torch.equal(flipped, image.flip(2))
        assert torch.equal(masks, unflipped.flip(2))
        for box, mask in zip(own["boxes"].int().tolist(), masks, strict=True):
            rows, columns = mask.nonzero().T
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert kinds == {"as it was", "flipped"}


def test_label_maps_flip_with_their_image(label_maps):
    record = label_maps.records[0]
    image, target = read_example(record, label_maps)
    mapper, flips = TrainMapper(label_maps), 0
    for seed in range(12):
        seed_everything(seed)
        flipped, own = mapper(record)
        turned = torch.equal(flipped, image.flip(2))
        flips += turned
        assert torch.equal(own["labels"], target["labels"].flip(1) if turned else target["labels"])
    assert 0 < flips < 12


@pytest.mark.parametrize("form", ["polygon", "counts", "compressed"])
def test_every_form_of_mask_is_read(form, drawn):
    mask = np.zeros((12, 10), np.uint8)
    mask[3:9, 2:7] = 1
    rle = pycocotools.mask.encode(np.asfortranarray(mask))
    if form == "polygon":
        segmentation = [[2, 3, 7, 3, 7, 9, 2, 9]]
    elif form == "compressed":
        segmentation = {"size": [12, 10], "counts": rle["counts"].decode()}
    else:  # runs of 0 and 1 down the columns, by hand
        runs = [2 * 12 + 3] + [6, 6] * 4 + [6, 12 * 3 + 3]
        segmentation = {"size": [12, 10], "counts": runs}
    drawn.data["images"][0] |= {"width": 10, "height": 12}
    box = {"bbox": [2, 3, 5, 6], "area": 30, "segmentation": segmentation}
    drawn.data["annotations"] = [{**drawn.data["annotations"][0], **box}]
    drawn.save()
    data = coco_dataset(str(drawn.json), str(drawn.images), ReadOptions(training=True))
    assert np.array_equal(data.read_target(data.records[0])["masks"][0].numpy(), mask)


@pytest.mark.parametrize("counts", [[16], "PPPP", "~"])
def test_a_mask_of_another_size_is_refused(counts, drawn):
    annotation = drawn.data["annotations"][0]
    annotation["segmentation"] = {"size": [80, 96], "counts": counts}
    drawn.save()
    with pytest.raises(UserError, match="annotation 1 of .*1.png: "):
        coco_dataset(str(drawn.json), str(drawn.images), ReadOptions(training=True))


def test_crowds_and_images_without_objects(drawn):
    first = drawn.data["images"][0]["id"]
    for a in drawn.data["annotations"]:
        a["iscrowd"] = int(a["image_id"] == first)
    drawn.save()
    training = coco_dataset(str(drawn.json), str(drawn.images), ReadOptions(training=True))
    assert first not in [r["id"] for r in training.records]
    validation = coco_dataset(str(drawn.json), str(drawn.images), ReadOptions(training=False))
    _, target = read_example(validation.records[0], validation)
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 80, 96)


def test_boxes_are_clipped_to_the_image(drawn):
    drawn.data["annotations"][0]["bbox"] = [-10, 60, 50, 100]
    drawn.save()
    dataset = coco_dataset(str(drawn.json), str(drawn.images), ReadOptions(training=True))
    assert read_example(dataset.records[0], dataset)[1]["boxes"][0].tolist() == [0, 60, 40, 80]


def test_broken_images_and_wrong_sizes_give_one_line(instances, drawn):
    record = dict(instances.records[0])
    with pytest.raises(UserError, match="is 96×80, the annotations say 97×80"):
        read_example({**record, "width": 97}, instances)
    (drawn.images / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError, match="image .*1.png cannot be read: .*expected an image file"):
        read_example(record, instances)


def test_images_are_rotated_by_their_exif_orientation(tmp_path):
    picture = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    exif = picture.getexif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    picture.save(tmp_path / "images" / "a.png", exif=exif)
    Image.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / "labels" / "a.png")
    dataset = label_dataset(str(tmp_path / "images"), str(tmp_path / "labels"))
    image, target = read_example(dataset.records[0], dataset)
    assert image.shape[1:] == target["labels"].shape == (5, 4)
    expected = np.rot90(np.asarray(picture), -1).transpose(2, 0, 1)
    assert np.array_equal((image * 255).round().byte().numpy(), expected)


def test_label_maps_determine_the_number_of_classes(drawn, drawn_labels, label_maps):
    assert label_maps.classes == ("class 0", "class 1", "class 2")  # 255 is no class
    named = label_dataset(str(drawn.images), str(drawn_labels), ("nothing", "red", "blue", "more"))
    assert named.classes == ("nothing", "red", "blue", "more")
    with pytest.raises(UserError, match="has the label 2, but the classes are 0 to 1"):
        label_dataset(str(drawn.images), str(drawn_labels), ("nothing", "red"))


def test_wrong_label_maps_give_one_line(drawn, drawn_labels, tmp_path):
    def read():
        return label_dataset(str(drawn.images), str(drawn_labels))

    with pytest.raises(UserError, match="no folder .*none: expected a folder of label maps"):
        label_dataset(str(drawn.images), str(tmp_path / "none"))
    path = drawn_labels / "1.png"
    good = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match="1.png has no label map .*1.png: expected a PNG"):
        read()
    Image.new("L", (5, 6)).save(path)
    with pytest.raises(UserError, match="is 5×6, its image .*1.png is 96×80"):
        read()
    Image.new("RGB", (96, 80), "red").save(path)
    with pytest.raises(UserError, match="has Pillow's mode RGB: expected one channel of 8"):
        read()
    path.write_bytes(good[:60])
    with pytest.raises(UserError, match="label map .*1.png cannot be read"):
        read()
    path.write_bytes(b"no")
    with pytest.raises(UserError, match="label map .*1.png cannot be read: cannot identify"):
        read()


def test_label_maps_without_any_class_are_refused(drawn, drawn_labels):
    for path in drawn_labels.iterdir():
        Image.new("L", Image.open(path).size, 255).save(path)
    for names in ((), ("nothing", "red")):
        with pytest.raises(UserError, match="label maps in .* is 255"):
            label_dataset(str(drawn.images), str(drawn_labels), names)


def test_palette_label_maps_are_read_by_index(drawn, drawn_labels):
    labels = np.asarray(Image.open(drawn_labels / "1.png"))
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(drawn_labels / "1.png")
    dataset = label_dataset(str(drawn.images), str(drawn_labels))
    _, target = read_example(dataset.records[0], dataset)
    assert np.array_equal(target["labels"].numpy(), labels)


def test_mistakes_of_the_annotation_file_are_named(drawn):
    drawn.json.write_text(json.dumps({"images": []}))
    with pytest.raises(UserError, match="has no 'categories'"):
        coco_dataset(str(drawn.json), str(drawn.images), ReadOptions(training=True))
