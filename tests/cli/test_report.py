"""The page on a training has every part and needs no other file; mistakes give one line."""

import re
import shlex
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from e3va.cli.main import main


@pytest.fixture
def trained(drawn, drawn_labels, pretrained, tmp_path):
    """Return a function that trains a few steps into a folder and returns it."""

    def train(name, *options, data=("--annotations", drawn.json), validation=True):
        words = ["train", "--images", drawn.images, *data, "--output", tmp_path / name]
        if validation:
            kind, path = data
            words += ["--val-images", drawn.images, f"--val-{kind[2:]}", path]
        words += ["--trunk", pretrained, "--size", 48, "--steps", 2, *options]
        assert main([str(word) for word in words]) == 0
        return tmp_path / name

    return train


class Page(HTMLParser):
    """The ids, pictures, scripts and addresses of a page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.pictures, self.tags, self.text = set(), [], [], path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "img":
            self.pictures.append(found["src"])
        assert "href" not in found


PARTS = {"scores", "classes", "confusion", "curves", "worst", "parts", "facts", "command"}


def test_the_page_on_objects_has_every_part(trained, drawn, tmp_path, capsys):
    folder = trained("out", "--eval-every", 1)
    page = Page(folder / "report.html")
    assert page.ids == PARTS | {"sizes", "precision"}
    assert "script" not in page.tags and "link" not in page.tags
    assert all(source.startswith("data:image/") for source in page.pictures)
    # Classes, sizes, precision, confusion; loss, AP mask, AP box; six pairs of images.
    assert len(page.pictures) == 4 + 3 + 2 * 6
    for name in ("1.png", "6.png", "AP mask", "red", "e3va_chain", "seconds a step"):
        assert name in page.text
    assert "F1 of the objects" in page.text
    capsys.readouterr()
    assert main(["report", str(folder), "--output", str(tmp_path / "again.html")]) == 0
    again = Page(tmp_path / "again.html")
    assert again.ids == page.ids and again.pictures == page.pictures  # predicted anew


def test_the_page_on_label_maps(trained, drawn_labels):
    page = Page(trained("out", data=("--labels", drawn_labels)) / "report.html")
    assert page.ids == PARTS
    assert "mean IoU of the classes in the image" in page.text
    assert len(page.pictures) == 2 + 1 + 2 * 6


def test_without_validation_data_it_says_so(trained):
    page = Page(trained("out", validation=False) / "report.html")
    assert page.ids == {"scores", "curves", "parts", "facts", "command"}
    assert "no validation data" in page.text


def test_the_command_repeats_the_training(trained, tmp_path):
    options = ("--highway", "rank=4", "--recipe", "e3va_chain", "--seed", 5, "--keep-empty")
    page = Page(trained("out", *options) / "report.html")
    command = re.search(r"<pre>(.*)</pre>", page.text, re.DOTALL)[1]
    command = command.replace("&#39;", "'").replace("&#34;", '"')
    assert "--seed 5" in command and "--keep-empty" in command and "--steps 2" in command
    first = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out")
    assert main(shlex.split(command)[1:]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == first


def test_several_trainings_side_by_side(trained, drawn_labels, tmp_path):
    folders = [str(trained("one")), str(trained("two", data=("--labels", drawn_labels)))]
    assert main(["compare", *folders, "--output", str(tmp_path / "c.html")]) == 0
    page = Page(tmp_path / "c.html")
    assert {"scores", "curves", "facts"} == page.ids and "script" not in page.tags
    assert page.text.count(">one<") >= 2 and "mIoU" in page.text and "AP mask" in page.text


def test_mistakes_are_one_line_and_leave_nothing(trained, drawn, tmp_path, capsys):
    folder = trained("out")
    capsys.readouterr()
    (tmp_path / "empty").mkdir()

    def fails(*words):
        assert main([str(word) for word in words]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    assert "expected the output folder of e3va train" in fails("report", tmp_path / "empty")
    assert "expected the output folder" in fails("compare", folder, tmp_path / "none")
    fails("report", folder, "--output", tmp_path / "none" / "x" / "report.html")
    assert "no ordinary file" in fails("report", folder, "--output", "/dev/null")
    (folder / "report.html").unlink()
    assert "given twice" in fails("compare", folder, folder)
    drawn.json.unlink()
    assert main(["report", str(folder)]) == 0
    assert "annotations.json" in capsys.readouterr().out
    page = Page(folder / "report.html")
    assert page.ids == {"scores", "classes", "curves", "parts", "facts", "command"}
    assert "cannot be read any more" in page.text


def test_class_names_are_text_and_no_markup(trained, drawn, capsys):
    names = ['<b>x</b> "q"', r"$\foo$"]
    for category, name in zip(drawn.data["categories"], names, strict=True):
        category["name"] = name
    drawn.save()
    page = Page(trained("out") / "report.html")
    assert "b" not in page.tags and "&lt;b&gt;x&lt;/b&gt;" in page.text
    assert r"$\foo$" in page.text and "precision" in page.ids


def test_the_pages_of_models_that_were_trained_together(trained, drawn_labels, tmp_path, capsys):
    both = ("--labels", drawn_labels, "--val-labels", drawn_labels)
    folder = trained("both", *both)
    assert main(["report", str(folder)]) == 0
    for task in ("instances", "labels"):
        page = Page(folder / task / "report.html")
        assert "trained together" in page.text and "worst" in page.ids
        command = re.search(r"<pre>(.*)</pre>", page.text, re.DOTALL)[1]
        assert "--annotations" in command and "--labels" in command
        assert f"--output {folder}" in command and f"{task}" not in command.split("--output")[1]
    assert main(["report", str(folder), "--output", str(tmp_path / "x.html")]) == 1
    assert "give one of their folders" in capsys.readouterr().err


def test_a_browser_shows_it_on_a_phone_without_scripts(trained, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the path: the page needs a browser")
    folder = trained("out")
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (390, 1200):
            context = browser.new_context(viewport={"width": width, "height": 800})
            page = context.new_page()
            page.route("http**", lambda route: pytest.fail("the page asks the network"))
            page.goto(f"file://{folder / 'report.html'}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
            assert page.evaluate(loaded)
            page.screenshot(path=tmp_path / f"{width}.png")
            assert Image.open(tmp_path / f"{width}.png").width == width
        browser.close()
