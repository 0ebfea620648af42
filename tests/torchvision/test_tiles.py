"""Tiled results equal those of the whole picture, for a model that finds drawn rectangles."""

import numpy as np
import pycocotools.mask
import pytest
import torch
from torch import nn

from e3va import UserError
from e3va.torchvision.masks import RunLengthMasks, encode_masks
from e3va.torchvision.predictor import PredictOptions, Predictor
from e3va.torchvision.tiles import Grid, ObjectMerger, Tiling
from e3va.torchvision.transform import detect


class FindColors(nn.Module):
    """Model that finds each color of an image exactly; red / 20 is the class, green the object.

    Args:
        masks: whether the objects have masks.
    """

    def __init__(self, masks: bool = True):
        super().__init__()
        self.device = nn.Parameter(torch.zeros(1))
        self.masks, self.sizes = masks, []

    def forward(self, images):
        self.sizes += [tuple(image.shape[1:]) for image in images]
        return [self.find((image * 255).round().long()) for image in images]

    def find(self, image):
        objects = [n for n in image[1].unique().tolist() if n]
        masks = torch.stack([image[1] == n for n in objects] or [torch.zeros(image.shape[1:])])
        masks = masks[: len(objects)].byte()
        found = {"boxes": torch.zeros(len(objects), 4), "scores": torch.zeros(len(objects))}
        found["labels"] = torch.zeros(len(objects), dtype=torch.int64)
        for n, mask in enumerate(masks):
            y, x = mask.nonzero().T
            found["boxes"][n] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
            found["labels"][n] = image[0, y[0], x[0]] // 20
            found["scores"][n] = 0.5 + 0.4 * len(x) / 10000  # what is cut scores less
        if self.masks:
            found["masks"] = masks[:, None]
        return found


class LabelColors(FindColors):
    """Model that labels each pixel by its red."""

    def find(self, image):
        return {"labels": image[0] // 20}


def draw(height: int, width: int, rectangles) -> torch.Tensor:
    """Return a picture [3, H, W] uint8 with objects (class, x1, y1, x2, y2)."""
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    for number, (label, x1, y1, x2, y2) in enumerate(rectangles, 1):
        area = picture[:, y1:y2, x1:x2]
        area[0], area[1] = 20 * label, number
    return picture


def predict_tiles(model, picture, size=64, overlap=16, batch=1):
    options = PredictOptions(batch_size=batch, tiling=Tiling(size, overlap))
    return Predictor({"": model}, 0.0, options).predict_tiles(picture)[""]


def by_box(found):
    """Return what was found, sorted by the boxes, as plain values."""
    masks = [record["counts"] for record in found["masks"].records] if "masks" in found else None
    boxes, labels = found["boxes"].tolist(), found["labels"].tolist()
    return sorted(zip(boxes, labels, masks or labels, strict=True))


# Of tiles of 64 with an overlap of 16 in a picture of 160 × 160: they begin at 0, 48 and 96, and
# share 48–64 and 96–112.
WHOLE = (1, 5, 5, 20, 30)  # inside one tile
IN_OVERLAP = (2, 50, 10, 62, 24)  # whole in two tiles
CUT_ONCE = (1, 40, 60, 60, 90)  # cut by the border at x = 48 of the second tile
TOUCHING = (3, 64, 5, 80, 20)  # begins where the first tile ends
CORNER = (2, 98, 98, 110, 110)  # whole in four tiles
LONG = (1, 8, 120, 152, 126)  # longer than a tile
LARGE = (3, 70, 30, 150, 92)  # wider than a tile, and as high as two
CROSSING = (2, 30, 100, 90, 112)  # longer than the overlap, in two tiles
AT_EDGE = (2, 140, 130, 160, 160)  # ends with the picture


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
def test_objects_equal_those_of_the_whole_picture(masks, batch):
    drawn = [WHOLE, IN_OVERLAP, CUT_ONCE, TOUCHING, CORNER, LONG, LARGE, CROSSING, AT_EDGE]
    picture, model = draw(160, 160, drawn), FindColors(masks)
    found = predict_tiles(model, picture, batch=batch)
    assert set(model.sizes) == {(64, 64)} and len(model.sizes) == 9
    expected = sorted(([float(v) for v in box], label) for label, *box in drawn)
    assert [row[:2] for row in map(list, by_box(found))] == [list(row) for row in expected]
    assert by_box(found) == by_box(detect(model, picture / 255))
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


@pytest.mark.parametrize("size", [(160, 50), (50, 160), (65, 64), (163, 97)])
def test_objects_at_random_places_are_found_once(size):
    rng, height, width = np.random.default_rng(sum(size)), *size
    rows = range(0, height - 15, 16)
    drawn = []
    for top in rows:  # one object in each row, so that none covers another
        x1, x2 = sorted(rng.integers(0, width, 2))
        drawn.append((int(rng.integers(1, 9)), int(x1), top + 1, int(x2) + 1, top + 14))
    picture, model = draw(height, width, drawn), FindColors()
    assert by_box(predict_tiles(model, picture)) == by_box(detect(model, picture / 255))


def test_neighbours_of_one_class_stay_apart():
    drawn = [(1, 20, 10, 100, 20), (1, 20, 20, 100, 30), (1, 20, 34, 100, 44)]
    found = predict_tiles(FindColors(), draw(60, 120, drawn))
    assert sorted(found["boxes"].long().tolist()) == [list(box) for _, *box in drawn]


def test_a_part_at_an_inner_border_that_the_neighbour_does_not_find_is_dropped():
    class Ghost(FindColors):
        def find(self, image):  # every image has something at its left border
            box, one = torch.tensor([[0.0, 20, 5, 40]]), torch.ones(1)
            return {"boxes": box, "labels": one.long(), "scores": one * 0.9}

    found = predict_tiles(Ghost(), draw(64, 160, []))
    assert found["boxes"].tolist() == [[0, 20, 5, 40]]  # only at the picture's own border


# Objects (class, score, x1, y1, x2, y2) of two tiles, which begin at x = 0 and x = 48 and share
# x = 48 to 64, and what is left of them.
PAIRS = {
    "other classes": ([(1, 0.9, 50, 10, 60, 30)], [(2, 0.8, 50, 10, 60, 30)], [(0, 0), (1, 0)]),
    "little overlap": ([(1, 0.9, 50, 10, 60, 30)], [(1, 0.8, 50, 20, 60, 40)], [(0, 0), (1, 0)]),
    "much overlap": ([(1, 0.7, 50, 10, 60, 30)], [(1, 0.8, 50, 12, 60, 32)], [(1, 0)]),
    "two of one tile": (
        [(1, 0.9, 50, 10, 60, 30), (1, 0.8, 50, 12, 60, 32)],
        [(1, 0.7, 50, 10, 60, 30)],
        [(0, 0), (0, 1)],
    ),
    "better part": ([(1, 0.9, 48.5, 10, 64, 30)], [(1, 0.5, 49.2, 10, 90, 30)], [(1, 0)]),
    "only a part": ([(1, 0.9, 50, 10, 64, 30)], [], []),
}


def merge(*tiles, size=(64, 112)):
    merger = ObjectMerger(Grid(Tiling(64, 16), size))
    for index, rows in enumerate(tiles):
        rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
        boxes = rows[:, 2:] - torch.tensor([48.0 * index, 0, 48 * index, 0])
        merger.add(index, {"boxes": boxes, "labels": rows[:, 0].long(), "scores": rows[:, 1]})
    found = merger.finish()
    return torch.cat([found["labels"][:, None], found["scores"][:, None], found["boxes"]], 1)


@pytest.mark.parametrize("name", PAIRS)
def test_objects_of_two_tiles(name):
    *tiles, kept = PAIRS[name]
    expected = torch.tensor([tiles[tile][place] for tile, place in kept]).reshape(-1, 6)
    assert torch.allclose(merge(*tiles), expected)


def test_parts_that_end_shortly_before_the_borders_are_joined():
    found = merge([(1, 0.7, 30, 10, 63.2, 30)], [(1, 0.9, 48.9, 11, 90, 31)])
    assert torch.allclose(found, torch.tensor([[1, 0.9, 30, 10, 90, 31]]))


def test_masks_decide_where_boxes_do_not():
    line, steps = torch.zeros(3, 64, 112, dtype=torch.uint8), range(112)
    for x in steps:  # in the shared area, the boxes of its parts have an IoU of less than a third
        line[:, x // 4 : x // 4 + 6, x] = torch.tensor([20, 7, 0])[:, None]
    assert by_box(predict_tiles(FindColors(), line)) == by_box(detect(FindColors(), line / 255))


def test_an_empty_picture_has_no_objects():
    found = predict_tiles(FindColors(), draw(100, 100, []))
    assert len(found["boxes"]) == len(found["scores"]) == len(found["masks"]) == 0


@pytest.mark.parametrize("size", [(160, 160), (70, 200), (33, 65)])
def test_label_maps_equal_that_of_the_whole_picture(size):
    picture = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    found = predict_tiles(LabelColors(), picture, batch=2)["labels"]
    assert found.dtype == torch.uint8 and torch.equal(found, picture[0] // 20)


def test_each_pixel_is_of_the_tile_of_nearest_centre():
    grid = Grid(Tiling(64, 16), (100, 163))
    owner = torch.full((100, 163), -1)
    for index, part in enumerate(grid.own_parts()):
        assert (owner[part.place[1:]] == -1).all()
        owner[part.place[1:]] = index
    for low, high, places in (
        (0, 2, torch.arange(100)[:, None] + 0.5),
        (1, 3, torch.arange(163)[None] + 0.5),
    ):
        centres = torch.tensor([(tile[low] + tile[high]) / 2 for tile in grid.tiles])
        distances = (places[..., None] - centres).abs()
        assert torch.equal((places - centres[owner]).abs(), distances.amin(-1).expand(100, 163))


@pytest.mark.parametrize("length", [64, 65, 100, 112, 113, 1000])
@pytest.mark.parametrize("overlap", [0, 16, 63])
def test_tiles_cover_a_side_and_overlap_enough(length, overlap):
    starts = Tiling(64, overlap).starts(length)
    assert starts[0] == 0 and starts[-1] == length - 64
    steps = [two - one for one, two in zip(starts, starts[1:], strict=False)]
    assert all(0 < step <= 64 - overlap for step in steps)
    assert len(starts) == 1 + -(-(length - 64) // (64 - overlap))


def test_neighbours_are_all_pairs_that_share_pixels():
    grid = Grid(Tiling(40, 25), (90, 70))  # here tiles also share pixels with those after the next
    expected = set()
    for one, a in enumerate(grid.tiles):
        for two, b in enumerate(grid.tiles[:one]):
            top, left, bottom, right = (*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:]))
            if top < bottom and left < right:
                expected.add((two, one))
    found = list(grid.neighbours())
    assert len(found) == len(set(found)) and set(found) == expected


@pytest.mark.parametrize(
    ("given", "values"),
    [((31,), ("31", "32")), ((64, 64), ("64", "63")), ((64, -1), ("-1", "63"))],
)
def test_impossible_tiles_are_one_line(given, values):
    with pytest.raises(UserError) as error:
        Tiling(*given)
    assert all(value in error.value.line for value in values) and "\n" not in error.value.line


def test_masks_are_placed_and_cropped_without_decoding_the_image():
    rng = np.random.default_rng(0)
    for share in [0, 0.3, 0.7, 1] * 10:
        mask_size = height, width = rng.integers(1, 9, 2).tolist()
        size = (height + int(rng.integers(5)), width + int(rng.integers(5)))
        top, left = (int(rng.integers(s - o + 1)) for s, o in zip(size, mask_size, strict=True))
        mask, image = (rng.random((height, width)) < share).astype(np.uint8), np.zeros(size, "u1")
        image[top : top + height, left : left + width] = mask
        placed = encode_masks(torch.from_numpy(mask)[None]).place((top, left), size)
        assert placed.size == size
        assert placed.records == [pycocotools.mask.encode(np.asfortranarray(image))]
        y, x, part = placed.crop(0)
        assert int(part.sum()) == mask.sum()
        assert np.array_equal(part, image[y : y + part.shape[0], x : x + part.shape[1]])
        flipped = placed.flip()
        y, x, part = flipped.crop(0)
        assert np.array_equal(part, image[:, ::-1][y : y + part.shape[0], x : x + part.shape[1]])
    assert isinstance(flipped, RunLengthMasks)
