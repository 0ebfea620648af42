"""Pictures of every kind are read as they look, or refused with one line."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from e3va import UserError
from e3va.data.images import check_header, check_headers, check_image, image_sizes, read_image
from e3va.data.problems import Problems
from e3va.torchvision.data import Dataset, read_example
from e3va.utils.paths import find_images

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)  # 6 wide, 4 high


def turned(path, orientation, pixels=PIXELS, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


# What a viewer shows of the stored array, from the definition of the EXIF tag.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_or_as_stored_by_its_recorded_size(tmp_path, suffix, orientation):
    options = {"lossless": True} if suffix == "webp" else {}
    path = turned(tmp_path / f"a.{suffix}", orientation, **options)
    upright = UPRIGHT[orientation](PIXELS)
    height, width = upright.shape[:2]
    assert image_sizes(path) == ((width, height), (6, 4))
    assert np.array_equal(np.array(read_image(path)), upright)
    assert np.array_equal(np.array(read_image(path, (width, height))), upright)
    stored = upright if orientation < 5 else PIXELS
    assert np.array_equal(np.array(read_image(path, (6, 4))), stored)
    with pytest.raises(UserError, match=rf"a.{suffix} is {width}×{height}.* 7×4"):
        read_image(path, (7, 4))
    problems = Problems()
    assert check_image(str(path), problems, 1, (6, 4)) == (6, 4)
    expected = {1: []}.get(orientation, ["turned" if orientation < 5 else "unturned"])
    assert [p.kind for p in problems] == expected


@pytest.mark.parametrize("mode", ["L", "I;16", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_uncompressed_tiff_files_keep_their_pixels(tmp_path, mode, orientation):
    gray = PIXELS[..., 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(gray.astype(np.uint16) * 257 if mode == "I;16" else gray)
    picture = picture if mode == "I;16" else picture.convert(mode)
    picture.save(tmp_path / "a.tif", exif=exif)
    upright = UPRIGHT[orientation](gray)
    assert np.array_equal(np.array(read_image(tmp_path / "a.tif"))[..., 0], upright)
    stored = upright if orientation < 5 else gray
    assert np.array_equal(np.array(read_image(tmp_path / "a.tif", (6, 4)))[..., 0], stored)


@pytest.mark.parametrize("size", [(4, 6), (6, 4)])
def test_both_frameworks_give_the_same_picture_of_a_record(tmp_path, size):
    pytest.importorskip("detectron2")
    from e3va.detectron2.data import ImageMapper
    from e3va.detectron2.labels import LabelMapper

    path = turned(tmp_path / "a.png", 6)
    record = {"path": str(path), "width": size[0], "height": size[1]}
    image, _ = read_example(record, Dataset([record], (), lambda _: {}, ""))
    expected = PIXELS if size == (6, 4) else UPRIGHT[6](PIXELS)
    assert np.array_equal((image * 255).round().numpy().transpose(1, 2, 0), expected)
    record["file_name"] = record.pop("path")
    for kind, (channels, mapper) in enumerate(
        [
            (slice(None), ImageMapper(is_train=False, augmentations=[], image_format="RGB")),
            (slice(None, None, -1), ImageMapper(False, augmentations=[], image_format="BGR")),
            (slice(None, None, -1), LabelMapper(False, [], "BGR")),
        ]
    ):
        found = mapper(record)["image"].numpy().transpose(1, 2, 0)
        assert np.array_equal(found[..., channels], expected), kind
    with pytest.raises(UserError, match="a.png is 4×6 .6×4 .* 4×7"):
        mapper({**record, "width": 4, "height": 7})


VALUES = np.array([[0, 1, 128, 129], [256, 257, 65534, 65535], [32768, 771, 60000, 12850]])
SCALED = np.array([[0, 0, 0, 1], [1, 1, 255, 255], [128, 3, 233, 50]])  # VALUES / 257


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big.tif", "a.pgm", "i.tif"])
def test_16_bits_are_scaled_to_8(tmp_path, name):
    path = tmp_path / name
    if name == "a.pgm":
        path.write_bytes(b"P5 4 3 65535\n" + VALUES.astype(">u2").tobytes())
    elif name == "big.tif":
        Image.frombytes("I;16B", (4, 3), VALUES.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(VALUES.astype(np.int32 if name == "i.tif" else np.uint16)).save(path)
    assert np.array_equal(np.array(read_image(path)), np.stack([SCALED] * 3, 2))
    problems = Problems()
    assert check_image(str(path), problems) == (4, 3)
    assert [p.kind for p in problems] == ["image_depth"]
    assert "from 0 to 65535 become 0 to 255" in problems[0].text


def test_a_turned_photo_of_16_bits_is_upright(tmp_path):
    path = turned(tmp_path / "a.png", 6, VALUES.astype(np.uint16))
    assert np.array_equal(np.array(read_image(path))[..., 0], UPRIGHT[6](SCALED))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[-0.5, 0.25], [3.5, np.nan]], np.float32), "float values from -0.5 to 3.5"),
        (np.array([[0, 70000]], np.int32), "whole numbers from 0 to 70000"),
        (np.array([[-3, 200]], np.int32), "whole numbers from -3 to 200"),
    ],
)
def test_values_that_no_scale_fits_are_refused_with_their_range(tmp_path, values, message):
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(UserError, match=f"image .*a.tif has {message}"):
        read_image(path)
    problems = Problems()
    assert check_image(str(path), problems) is None
    assert [p.kind for p in problems] == ["image_float"] and message in problems[0].text


def test_8_bit_values_in_32_bits_stay(tmp_path):
    values = np.array([[0, 7], [200, 255]], np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(np.array(read_image(tmp_path / "a.tif"))[..., 1], values)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_pictures_of_8_bits_keep_their_values(tmp_path, mode):
    picture = Image.fromarray(PIXELS).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    assert np.array_equal(np.array(read_image(path)), np.array(picture.convert("RGB")))


def test_too_many_pixels_are_one_line_and_many_pixels_no_noise(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("L", (50, 40)).save(path)
    code = (
        "import sys; from PIL import Image; from e3va.data.images import read_image;"
        "Image.MAX_IMAGE_PIXELS = 1500; print(read_image(sys.argv[1]).size)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(50, 40)\n", "")  # up to twice as many pixels are read
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    for work in (read_image, image_sizes, check_header):
        with pytest.raises(UserError, match=r"a.png has 2,000 pixels.* 1,800.*tiles"):
            work(path)
    problems = Problems()
    assert check_image(str(path), problems) is None
    assert [p.kind for p in problems] == ["too_large"] and "2,000" in problems[0].text


def test_headers_show_the_images_that_cannot_be_used(tmp_path):
    """Those of another size, of float values, and files that are no images; one is good."""
    for name in ("good.png", "size.png", "turned.jpg"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.zeros((4, 6), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "text.png").write_text("no image")

    def check(*images):
        check_headers([{"path": str(tmp_path / n), "width": w, "height": h} for n, w, h in images])

    check(("good.png", 6, 4), ("turned.jpg", 6, 4), ("turned.jpg", 4, 6))
    bad = [("good.png", 6, 4), ("size.png", 4, 6), ("float.tif", 6, 4), ("text.png", 6, 4)]
    with pytest.raises(UserError, match=r"^3 of 4 images .*size.png is 6×4, .* 4×6.*e3va check"):
        check(*bad)
    for (name, *_), image in zip(bad[1:], bad[1:], strict=True):
        with pytest.raises(UserError, match=f"^1 of 2 images .*{name}"):
            check(bad[0], image, image)


def test_heic_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "a.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    Image.init()
    monkeypatch.delitem(Image.EXTENSION, ".heic", raising=False)
    with pytest.raises(UserError, match="a.HEIC cannot be read.*pip install pillow-heif"):
        read_image(path)
    assert find_images([str(tmp_path)]) == [path]


def test_corrupt_exif_data_stand_for_no_orientation(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage")
    assert read_image(path, (6, 4)).size == (6, 4)
    assert image_sizes(path) == ((6, 4), (6, 4))


def test_folders_give_all_pictures_but_hidden_ones(tmp_path):
    names = ["a.JPG", "b.jfif", "c.tiff", "d.avif", "._a.JPG", ".b.png", "notes.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find_images([str(tmp_path)])] == names[:4]
    assert find_images([str(tmp_path / ".b.png")]) == [tmp_path / ".b.png"]
