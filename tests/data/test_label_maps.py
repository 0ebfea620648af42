"""Label maps are paired with images and read as classes; errors name the file."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from e3va import UserError
from e3va.data.images import image_size
from e3va.data.label_maps import (
    IGNORED,
    check_labels,
    largest_label,
    numbered_classes,
    pair_label_maps,
    read_label_map,
    summarize_labels,
)
from e3va.torchvision.data import open_dataset

LABELS = np.array([[0, 1, 2, 255], [1, 1, 0, 0], [2, 0, 0, 1]], np.uint8)


@pytest.fixture
def folders(tmp_path):
    """``images`` with a.jpg and b.png, ``labels`` with a map for each."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (4, 3), (9, 90, 200)).save(images / name)
        Image.fromarray(LABELS).save(labels / f"{name[0]}.png")
    return images, labels


def test_every_image_has_the_map_of_its_name(folders):
    images, labels = folders
    Image.fromarray(LABELS).save(labels / "of_nothing.png")
    pairs = pair_label_maps(*folders)
    assert [(p.image, p.labels) for p in pairs] == [
        (images / "a.jpg", labels / "a.png"),
        (images / "b.png", labels / "b.png"),
    ]
    assert {(p.width, p.height) for p in pairs} == {(4, 3)}


@given(
    labels=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    palette=st.booleans(),
)
def test_a_map_is_read_as_it_was_written(tmp_path_factory, labels, palette):
    """A palette is read as indices, whatever their colours."""
    path = tmp_path_factory.mktemp("maps") / "a.png"
    image = Image.fromarray(labels)
    if palette:
        image = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
        image.putpalette([(7 * k) % 256 for k in range(768)])
    image.save(path)
    read = read_label_map(path)
    assert read.dtype == torch.uint8 and np.array_equal(read.numpy(), labels)
    assert largest_label(path) == max((k for k in labels.flat if k != IGNORED), default=-1)


def test_labels_that_start_at_one_are_shifted_and_lower_ones_ignored(tmp_path):
    Image.fromarray(np.array([[0, 1, 2], [150, 0, 3]], np.uint8)).save(tmp_path / "a.png")
    read = read_label_map(tmp_path / "a.png", first=1, classes=150)
    assert read.tolist() == [[255, 0, 1], [149, 255, 2]]
    with pytest.raises(UserError, match="150, .* 1 to 149"):
        read_label_map(tmp_path / "a.png", first=1, classes=149)


def test_255_stays_ignored_wherever_labels_start(tmp_path):
    """The largest label, 254, is class 252 where 2 is class 0; 255 would have been class 253."""
    Image.fromarray(np.array([[255, 1, 2], [3, 254, 255]], np.uint8)).save(tmp_path / "a.png")
    read = read_label_map(tmp_path / "a.png", first=2, classes=253)
    assert read.tolist() == [[255, 255, 0], [1, 252, 255]]
    with pytest.raises(UserError, match="254, .* 2 to 253"):
        read_label_map(tmp_path / "a.png", first=2, classes=252)


def test_classes_without_names_are_numbered_up_to_the_largest_label(folders):
    assert numbered_classes(pair_label_maps(*folders)) == ["class 0", "class 1", "class 2"]


def test_a_map_that_has_changed_is_read_again(folders):
    path = folders[1] / "a.png"
    assert largest_label(path) == 2
    Image.fromarray(np.full((30, 40), 7, np.uint8)).save(path)
    assert largest_label(path) == 7


def test_the_size_of_a_rotated_image_is_that_of_the_upright_one(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (3, 4)


def spoil(folders, kind):
    images, labels = folders
    path = labels / "b.png"
    if kind == "no map":
        path.unlink()
    elif kind == "other size":
        Image.fromarray(LABELS.T.copy()).save(path)
    elif kind == "colours":
        Image.new("RGB", (4, 3), (1, 1, 2)).save(path)
    elif kind == "transparent":
        Image.new("RGBA", (4, 3), (1, 1, 1, 0)).save(path)
    elif kind == "16 bits":
        Image.fromarray(LABELS.astype(np.uint16) + 300).save(path)
    elif kind == "no image":
        (images / "b.png").write_text("hello")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "unknown label":
        Image.fromarray(np.where(LABELS == 2, 9, LABELS).astype(np.uint8)).save(path)
    elif kind == "ignored":
        for file in labels.iterdir():
            Image.new("L", (4, 3), IGNORED).save(file)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no map", r"image .*b.png has no label map .*labels.b.png"),
        ("other size", r"label map .*b.png is 3×4, its image .*b.png is 4×3"),
        ("colours", r"label map .*b.png .*mode RGB"),
        ("transparent", r"label map .*b.png .*mode RGBA"),
        ("16 bits", r"label map .*b.png .*labels from 300 to 555"),
        ("no image", r"image .*b.png cannot be read: cannot identify"),
        ("truncated", r"label map .*b.png cannot be read: "),
        ("unknown label", r"label map .*b.png has the label 9, .* 0 to 2 \(x, y"),
        ("ignored", r"label maps in .*labels is 255"),
    ],
)
def test_mistakes_are_one_line_with_the_file(folders, kind, message):
    spoil(folders, kind)
    with pytest.raises(UserError, match=message) as caught:
        check_labels(pair_label_maps(*folders), ["x", "y", "z"])
    assert "\n" not in str(caught.value)


def test_wrong_folders_are_refused(folders, tmp_path):
    images, labels = folders
    with pytest.raises(UserError, match="no folder .*nowhere: expected a folder of label maps"):
        pair_label_maps(images, tmp_path / "nowhere")
    with pytest.raises(UserError, match="no folder .*a.jpg: expected a folder of images"):
        pair_label_maps(images / "a.jpg", labels)
    with pytest.raises(UserError, match="images and label maps are both in"):
        pair_label_maps(images, labels / ".." / "images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="names no image"):
        pair_label_maps(tmp_path / "empty", labels)


@pytest.mark.parametrize("form", ["16 bits", "32 bits", "RGB", "RGBA", "LA", "1"])
def test_labels_in_another_form_are_read_and_counted(folders, form):
    """Many tools write class numbers into 16 bits or into three equal channels."""
    path, labels = folders[1] / "b.png", LABELS % 2 if form == "1" else LABELS
    if form == "16 bits":
        Image.fromarray(labels.astype(np.uint16)).save(path)
    elif form == "32 bits":
        Image.fromarray(labels.astype(np.int32)).save(path, format="TIFF")
    elif form == "1":
        Image.fromarray(labels * np.uint8(255)).convert("1").save(path)
    else:
        Image.fromarray(labels).convert("RGB").convert(form).save(path)
    with Image.open(path) as file:
        assert file.mode not in ("L", "P")
    assert read_label_map(path).tolist() == labels.tolist()
    pairs = pair_label_maps(*folders)
    names = ["x", "y", "z"]
    check_labels(pairs, names)
    summary = summarize_labels("photos", pairs, names, pairs.counts)
    assert "converted: label maps in another form than 8 bits with one channel (1)" in summary


def test_suffixes_in_upper_case_belong_together_and_hidden_files_are_skipped(folders):
    images, labels = folders
    (images / "a.jpg").rename(images / "a.JPG")
    (labels / "a.png").rename(labels / "a.PNG")
    (images / "b.png").rename(images / "b.jfif")
    for path in (images / "._a.JPG", labels / "._a.png", labels / ".DS_Store"):
        path.write_bytes(b"Mac OS X")
    pairs = pair_label_maps(*folders)
    assert [(p.image.name, p.labels.name) for p in pairs] == [
        ("a.JPG", "a.PNG"),
        ("b.jfif", "b.png"),
    ]
    assert pairs.counts["hidden"] == 2


def test_missing_label_maps_are_refused_or_skipped_and_counted(folders):
    images, labels = folders
    (labels / "b.png").rename(labels / "c.png")
    with pytest.raises(UserError, match=r"b.png has no label map .*labels.b.png.*--skip-missing"):
        pair_label_maps(*folders)
    pairs = pair_label_maps(*folders, skip_missing=True)
    assert [p.image.name for p in pairs] == ["a.jpg"]
    assert pairs.counts["no_map_skipped"] == 1 and pairs.counts["no_image"] == 1
    text = summarize_labels("photos", pairs, ["x", "y", "z", "sea"], pairs.counts)
    for part in ("1 image with label maps, 4 classes", "images without a label map (1)"):
        assert part in text
    assert "label maps without an image (1)" in text and text.endswith(
        "no pixel of the classes sea"
    )
    (labels / "a.png").unlink()
    with pytest.raises(UserError, match="no image in .*images has a label map in .*labels"):
        pair_label_maps(*folders, skip_missing=True)


@pytest.mark.parametrize("names", [["background", "crack"], ["class 0"]])
def test_masks_in_black_and_white_are_refused(folders, names):
    """255 stands for no class, so a model would learn that everything is class 0."""
    labels = np.where(LABELS == 1, 255, 0).astype(np.uint8)
    for name in "ab":
        Image.fromarray(labels).save(folders[1] / f"{name}.png")
    pairs = pair_label_maps(*folders)
    with pytest.raises(UserError, match="labels: the only labels are 0 and 255.*write 1"):
        check_labels(pairs, names)
    Image.fromarray(np.where(labels == 255, 1, 0).astype(np.uint8)).save(folders[1] / "a.png")
    pairs, two = pair_label_maps(*folders), ["background", "crack"]
    check_labels(pairs, two)  # class 1 occurs
    summary = summarize_labels("photos", pairs, two, pairs.counts)
    assert "warnings: label maps with only the labels 0 and 255 (1)" in summary


def test_one_label_is_a_warning(folders):
    for name in "ab":
        Image.new("L", (4, 3), 0).save(folders[1] / f"{name}.png")
    pairs = pair_label_maps(*folders)
    check_labels(pairs, ["background"])
    summary = summarize_labels("photos", pairs, ["background"], pairs.counts)
    assert "warnings: label maps with only the label 0 (2)" in summary


@pytest.mark.parametrize("as_stored", [True, False])
def test_the_size_of_the_map_says_which_picture_it_fits(folders, as_stored):
    images, labels = folders
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save(images / "a.jpg", exif=exif)
    if not as_stored:
        Image.fromarray(LABELS.T.copy()).save(labels / "a.png")
    pairs = pair_label_maps(*folders)
    assert (pairs[0].width, pairs[0].height) == ((4, 3) if as_stored else (3, 4))
    assert pairs.counts["unturned"] == as_stored


def test_maps_without_a_labelled_pixel_are_counted(folders):
    Image.new("L", (4, 3), IGNORED).save(folders[1] / "b.png")
    pairs = pair_label_maps(*folders)
    summary = summarize_labels("photos", pairs, ["x", "y", "z"], pairs.counts)
    assert "label maps without a labelled pixel (1)" in summary


def test_an_image_of_float_values_is_refused(folders):
    (folders[0] / "b.png").unlink()
    Image.new("F", (4, 3)).save(folders[0] / "b.tif")
    with pytest.raises(UserError, match="b.tif has float values"):
        pair_label_maps(*folders)


def test_two_maps_of_an_image_are_refused_and_a_shared_map_is_counted(folders):
    images, labels = folders
    Image.new("RGB", (4, 3)).save(images / "a.png")
    pairs = pair_label_maps(*folders)
    assert len(pairs) == 3 and pairs.counts["ambiguous"] == 1
    summary = summarize_labels("x", pairs, "abc", pairs.counts)
    assert "warnings: images that share the label map of another image (1)" in summary
    Image.fromarray(LABELS).save(labels / "a.PNG")
    with pytest.raises(UserError, match=r"labels.a.PNG and a.png"):
        pair_label_maps(*folders)


def test_validation_maps_may_have_only_the_labels_0_and_255(folders):
    images, labels = map(str, folders)
    for name in "ab":
        Image.fromarray(np.where(LABELS == 1, 255, 0).astype(np.uint8)).save(f"{labels}/{name}.png")
    opened = open_dataset(images, labels=labels, classes=("x", "y", "z"), split="val")
    assert len(opened.records) == 2
    with pytest.raises(UserError, match="write 1"):
        open_dataset(images, labels=labels, classes=("x", "y", "z"))
