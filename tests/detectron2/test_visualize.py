"""Pictures are those of Detectron2's Visualizer, made with less memory."""

import detectron2.utils.visualizer as visualizer
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances

from e3va import UserError
from e3va.detectron2.masks import PastedMasks
from e3va.detectron2.visualize import draw_labels, draw_output, predict_folder

METADATA = Metadata(thing_classes=["ant", "bee"], stuff_classes=["a", "b", "c"])
HEIGHT, WIDTH = 500, 640


def found_objects(count=6):
    generator = torch.Generator().manual_seed(0)
    found = Instances((HEIGHT, WIDTH))
    corners = torch.rand(count, 2, generator=generator) * 300
    found.pred_boxes = Boxes(torch.cat([corners, corners + 180], 1))
    found.scores, found.pred_classes = torch.linspace(0.2, 1, count), torch.arange(count) % 2
    masks = torch.rand(count, 28, 28, generator=generator)
    found.pred_masks = PastedMasks(masks, found.pred_boxes.tensor, (HEIGHT, WIDTH))
    return found


def noise(channels=(3,)):
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, *channels), dtype=np.uint8)


def test_objects_are_drawn_as_by_detectron2(monkeypatch):
    found, image = found_objects(), noise()
    monkeypatch.setattr(visualizer, "random_color", lambda **_: (0.1, 0.8, 0.3))
    picture, what = draw_output(image, {"instances": found}, METADATA, 0.5)
    chosen = found[found.scores >= 0.5]
    assert what == f"{len(chosen)} objects" and 1 < len(chosen) < len(found)
    chosen.pred_masks = torch.from_numpy(np.asarray(chosen.pred_masks))
    expected = visualizer.Visualizer(image[:, :, ::-1], METADATA).draw_instance_predictions(chosen)
    assert np.array_equal(picture, expected.get_image())
    assert not np.array_equal(picture, image[:, :, ::-1])


@pytest.mark.parametrize(("width", "scale"), [(WIDTH, 1), (2, 4)])
def test_a_label_map_covers_every_pixel_with_its_color(width, scale):
    labels = np.zeros((HEIGHT, width), int)
    labels[200:] = 1
    metadata = Metadata(stuff_classes=["a", "b"], stuff_colors=[[255, 0, 0], [0, 0, 255]])
    picture = draw_labels(np.zeros((HEIGHT, width, 3), np.uint8), labels, metadata).astype(int)
    assert picture.shape == (HEIGHT * scale, width * scale, 3)
    upper, lower = np.split(picture, [200 * scale])
    assert (upper[..., 0] > 90).mean() > 0.7 and (lower[..., 2] > 90).mean() > 0.7


@pytest.mark.slow
def test_a_side_that_matplotlib_cannot_draw_is_reduced():
    picture = draw_labels(np.zeros((1, 70_000, 3), np.uint8), np.zeros((1, 70_000), int), METADATA)
    assert picture.shape == (1, 65_000, 3)


def test_an_output_folder_that_cannot_be_created_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        predict_folder(None, [], tmp_path / "file" / "drawn", 0.5)
