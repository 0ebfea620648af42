"""Label maps: the check counts as numpy does, and finds every kind of problem."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from e3va import UserError
from e3va.data.check_label_maps import check_label_maps
from e3va.data.label_maps import check_labels, numbered_classes, pair_label_maps
from e3va.data.problems import REFUSED
from e3va.data.report import report_numbers, report_text


class Maps:
    """Three pictures of 20×16 with label maps of 0, 1 and 2."""

    def __init__(self, folder):
        self.images, self.labels = folder / "images", folder / "labels"
        for path in (self.images, self.labels):
            path.mkdir(parents=True)
        for name in "abc":
            Image.new("RGB", (20, 16), "red").save(self.images / f"{name}.jpg")
            labels = np.zeros((16, 20), np.uint8)
            labels[:8], labels[12:] = 1, 2
            self.write(name, labels)

    def write(self, name, labels, **options):
        Image.fromarray(labels, **options).save(self.labels / f"{name}.png")

    def check(self, names=("ground", "sky", "sea"), **options):
        return check_label_maps(self.labels, self.images, names, **options)


@pytest.fixture
def maps(tmp_path):
    return Maps(tmp_path)


def test_good_maps_have_no_problem(maps):
    found = maps.check()
    assert found.problems == [] and len(found.usable) == 3 and found.named
    numbers = report_numbers(found)
    assert [c["pixels"] for c in numbers["classes"]] == [3 * 4 * 20, 3 * 8 * 20, 3 * 4 * 20]
    text = report_text(found)
    assert "3 usable label maps of 3: 960 pixels, 3 classes" in text
    assert "unlabelled (255): 0.0% of the pixels, in 0 maps" in text
    unnamed = maps.check(())
    assert unnamed.names == ["class 0", "class 1", "class 2"] and not unnamed.named


def filled(value, shape=(16, 20)):
    return np.full(shape, value, np.uint8)


CASES = {
    "no map": (lambda m: (m.labels / "b.png").unlink(), [("no_map", "images/b.jpg")]),
    "no image": (lambda m: (m.images / "b.jpg").unlink(), [("no_image", "labels/b.png")]),
    "size": (lambda m: m.write("b", filled(1, (20, 16))), [("map_size", "labels/b.png")]),
    "colours": (
        lambda m: Image.new("RGB", (20, 16), "red").save(m.labels / "b.png"),
        [("map_mode", "labels/b.png")],
    ),
    "gray in three channels": (
        lambda m: m.write("b", filled(1, (16, 20, 3))),
        [("map_depth", "labels/b.png")],
    ),
    "16 bits": (
        lambda m: m.write("b", np.ones((16, 20), np.uint16)),
        [("map_depth", "labels/b.png")],
    ),
    "large labels": (
        lambda m: m.write("b", np.full((16, 20), 256, np.uint16)),
        [("map_mode", "labels/b.png")],
    ),
    "black and white": (
        lambda m: [m.write(name, np.eye(16, 20, dtype=np.uint8) * 255) for name in "abc"],
        [("two_labels", "labels"), ("unused", "labels"), ("unused", "labels")],
    ),
    "one in black and white": (
        lambda m: m.write("b", np.eye(16, 20, dtype=np.uint8) * 255),
        [("two_labels_map", "labels/b.png")],
    ),
    "only 0": (
        lambda m: [m.write(name, filled(0)) for name in "abc"],
        [("one_class", "labels"), ("unused", "labels"), ("unused", "labels")],
    ),
    "hidden": (
        lambda m: [(f / "._b.png").write_bytes(b"Mac OS X") for f in (m.images, m.labels)],
        [("hidden", "images/._b.png"), ("hidden", "labels/._b.png")],
    ),
    "upper case": (lambda m: (m.labels / "b.png").rename(m.labels / "b.PNG"), []),
    "label": (lambda m: m.write("b", filled(3)), [("label", "labels/b.png")]),
    "ignored": (lambda m: m.write("b", filled(255)), [("ignored", "labels/b.png")]),
    "broken map": (
        lambda m: (m.labels / "b.png").write_bytes(b"no image"),
        [("undecodable", "labels/b.png")],
    ),
    "broken image": (
        lambda m: (m.images / "b.jpg").write_bytes((m.images / "b.jpg").read_bytes()[:-40]),
        [("undecodable", "images/b.jpg")],
    ),
    "two images": (
        lambda m: Image.new("RGB", (20, 16)).save(m.images / "b.png"),
        [("ambiguous", "images/b.png")],
    ),
    "two maps": (
        lambda m: (m.labels / "b.PNG").write_bytes((m.labels / "a.png").read_bytes()),
        [("map_twice", "labels/b.png")],
    ),
    "unused": (
        lambda m: [m.write(name, filled(1)) for name in "abc"],
        [("unused", "labels"), ("unused", "labels")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_problem_is_found_where_it_is(maps, name):
    change, expected = CASES[name]
    change(maps)
    found = maps.check()
    root = maps.images.parent
    assert sorted((p.kind, p.file) for p in found.problems) == sorted(
        (kind, str(root / file)) for kind, file in expected
    )
    training_refuses = False
    try:
        pairs = pair_label_maps(maps.images, maps.labels)
        check_labels(pairs, found.names)
    except UserError:
        training_refuses = True
    # Training finds a truncated image only when it reads the image.
    assert (found.problems.of_severity(REFUSED) != []) == (
        training_refuses or name == "broken image"
    )


def test_maps_must_fit_the_upright_or_the_stored_image(maps):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 20)).save(maps.images / "b.jpg", exif=exif)
    assert maps.check().problems.counts() == {"turned": 1}
    Image.new("RGB", (20, 16)).save(maps.images / "b.jpg", exif=exif)
    assert maps.check().problems.counts() == {"unturned": 1}
    Image.new("RGB", (21, 16)).save(maps.images / "b.jpg", exif=exif)
    assert maps.check().problems.counts() == {"map_size": 1}


def test_a_palette_counts_by_its_indices(maps):
    image = Image.fromarray(filled(2))
    image.putpalette([0] * 6 + [200, 10, 10])
    assert image.mode == "P"
    image.save(maps.labels / "b.png")
    found = maps.check()
    assert found.problems == [] and found.pixels[2] == 2 * 4 * 20 + 320


def test_published_ade20k_labels_are_shifted(maps):
    found = maps.check((), first=1, classes=150)
    assert found.pixels[0] == 3 * 8 * 20 and found.pixels[1] == 3 * 4 * 20
    assert found.pixels[255] == 3 * 4 * 20 and len(found.names) == 150
    maps.write("b", filled(151))
    problem = next(p for p in maps.check((), first=1, classes=150).problems if p.kind == "label")
    assert "151: the classes are 1 to 150" in problem.text
    maps.write("b", filled(255))  # no class here either
    found = maps.check((), first=1, classes=150)
    assert found.pixels[255] == 2 * 4 * 20 + 16 * 20 and "label" not in found.problems.counts()


def test_maps_without_images_and_folders_without_files(maps, tmp_path):
    found = check_label_maps(maps.labels, None)
    assert found.problems == [] and found.usable[0].size == (20, 16)
    with pytest.raises(UserError, match="both in"):
        check_label_maps(maps.labels, maps.labels)
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "gone"):
        with pytest.raises(UserError, match=folder):
            check_label_maps(tmp_path / folder, maps.images)


@settings(max_examples=25, deadline=None)
@given(
    arrays=st.lists(
        st.tuples(
            st.integers(1, 30), st.integers(1, 30), st.lists(st.sampled_from([0, 1, 5, 254, 255]))
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 99),
)
def test_counts_are_those_of_numpy(tmp_path_factory, arrays, seed):
    folder = tmp_path_factory.mktemp("maps")
    rng, maps = np.random.default_rng(seed), []
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number, (height, width, values) in enumerate(arrays):
        labels = rng.choice(np.array(values or [0], np.uint8), (height, width))
        maps.append(labels)
        Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
        Image.new("L", (width, height)).save(folder / "images" / f"{number}.png")
    found = check_label_maps(folder / "labels", folder / "images")
    for label in range(256):
        assert found.pixels[label] == sum((m == label).sum() for m in maps)
        assert found.images[label] == sum((m == label).any() for m in maps)
    harmless = {"unused", "ignored", "nothing", "two_labels", "two_labels_map", "one_class"}
    assert not found.problems.counts().keys() - harmless
    named = numbered_classes(pair_label_maps(folder / "images", folder / "labels"))
    if not found.problems.counts().get("nothing"):
        assert found.names == named
