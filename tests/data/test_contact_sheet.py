"""The contact sheet: what is shown, where, and in which colours."""

import numpy as np
import pytest
from PIL import Image

from e3va.data.check_instances import check_instances
from e3va.data.check_label_maps import check_label_maps
from e3va.data.contact_sheet import (
    CAPTION,
    FILL,
    GAP,
    ROW,
    TILE,
    TITLE,
    WIDTH,
    Picture,
    choose,
    draw_sheet,
    write_sheet,
)
from e3va.utils.colors import COLORS

TOP = TITLE + ROW + GAP  # of the first tile, where the legend is of one line


def picture(classes, size=(40, 30)):
    return Picture(None, size, "caption", frozenset(classes))


def test_every_class_is_shown_and_the_choice_repeats():
    pictures = [picture([0])] * 50 + [picture([0, 1])] * 5 + [picture([2])] + [picture([])] * 50
    chosen = choose(pictures, 3)
    assert len(chosen) == 3 and chosen == choose(pictures, 3)
    assert frozenset().union(*(pictures[i].classes for i in chosen)) == {0, 1, 2}
    assert choose(pictures, 500) == list(range(106))
    assert choose([], 5) == []
    for count in range(1, 30):
        assert len(set(choose(pictures, count))) == count


def test_objects_are_drawn_in_their_classs_colour(drawn, tmp_path):
    for image in drawn.data["images"]:  # grey, so that colours can be computed
        size = (image["width"], image["height"])
        Image.new("RGB", size, (100, 100, 100)).save(drawn.images / image["file_name"])
    found = check_instances(drawn.data, drawn.json, drawn.images)
    assert write_sheet(found, 6, tmp_path / "sheet.png") == 6
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    tall = TILE + CAPTION + GAP  # portraits are as high as a tile is wide
    assert sheet.shape == (TOP + 2 * tall, WIDTH, 3)
    assert [p.caption for p in found.pictures()][0] == "1.png (id 1): 2 objects"
    for annotation in drawn.data["annotations"]:
        place = annotation["image_id"] - 1
        width, height = (96, 80) if place % 2 == 0 else (80, 96)
        scale = min(TILE / width, TILE / height)
        left, top = GAP + place % 3 * (TILE + GAP), TOP + place // 3 * tall
        x, y, w, h = annotation["bbox"]
        middle = sheet[int(top + (y + h / 2) * scale), int(left + (x + w / 2) * scale)]
        colour = np.array(COLORS[0 if annotation["category_id"] == 3 else 1])
        assert np.allclose(middle, 100 + FILL * (colour - 100), atol=1)
        edge = sheet[int(top + (y + h / 2) * scale), round(left + x * scale) + 1]
        assert np.allclose(edge, colour, atol=1)
        beside = sheet[int(top + (y + h / 2) * scale), int(left + (x - 4) * scale)]
        assert np.allclose(beside, 100, atol=1)


def test_label_maps_are_drawn(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir(), labels.mkdir()
    Image.new("RGB", (400, 300), (200, 100, 0)).save(images / "a.png")
    values = np.zeros((300, 400), np.uint8)
    values[:150, 200:], values[150:, :200], values[150:, 200:] = 1, 2, 255
    Image.fromarray(values).save(labels / "a.png")
    found = check_label_maps(labels, images, ("ground", "sky", "sea"))
    write_sheet(found, 4, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(float)
    height = round(TILE * 3 / 4)
    assert sheet.shape == (TOP + height + CAPTION + GAP, WIDTH, 3)
    tile = sheet[TOP : TOP + height, GAP : GAP + TILE]
    quarter = tile[height // 2 + 20 : -20, TILE // 2 + 20 : -20]
    # Stripes: of two values, unlike the image; label 0: the image without its colour.
    assert len(np.unique(quarter[..., 0])) == 2
    corner = tile[10, 10]
    assert corner[0] == corner[1] == corner[2] == round(0.6 * 100 + 60)
    for spot, colour in ((tile[10, -10], COLORS[0]), (tile[-10, 10], COLORS[1])):
        expected = np.array((200, 100, 0)) * (1 - FILL) + FILL * np.array(colour)
        assert np.allclose(spot, expected, atol=1)


def test_thin_images_and_many_classes_fit():
    pictures = [picture([0], (4000, 3)), picture([1], (3, 4000)), picture([2], (1, 1))]
    sheet = draw_sheet(pictures, "t" * 500, [(f"class {k}", str(k)) for k in range(500)])
    assert sheet.width == WIDTH and TILE < sheet.height < 3 * WIDTH


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "all": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("kind", VISION)
def test_the_first_colours_differ_for_any_vision(kind):
    values = np.array(COLORS[:7]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(VISION[kind]).T).clip(0, 1)
    lab = to_lab(seen)
    for one in range(7):
        for other in range(one):
            assert np.linalg.norm(lab[one] - lab[other]) > 10, (one, other)


def to_lab(linear):
    """CIE L*a*b* of linear sRGB under D65; a distance of 2.3 is just noticeable."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(matrix).T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
