"""The page on a training along Detectron2 has the same parts as that of the other framework."""

import json

import pytest

from e3va.cli.main import main
from e3va.detectron2 import engine, load_config

from ..cli.test_report import PARTS, Page
from .conftest import HEAD


def trained(cfg, folder):
    cfg.train.output_dir = str(folder)
    cfg.train.max_iter = 2
    engine.prepare(cfg)
    from detectron2.config import LazyConfig

    LazyConfig.save(cfg, str(folder / "config.yaml"))
    engine.train(cfg)


@pytest.mark.slow
def test_the_page_on_objects(pretrained_config, tmp_path, capsys):
    folder = tmp_path / "out"
    trained(pretrained_config, folder)
    assert main(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert page.ids == PARTS | {"sizes", "precision"} and "script" not in page.tags
    last = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    score = next(line["segm/AP"] for line in reversed(last) if "segm/AP" in line)
    assert f'<td>AP mask</td><td class="number">{score:.1f}</td>' in page.text
    assert "detectron2" in page.text and "red" in page.text


@pytest.mark.slow
def test_the_page_on_label_maps(drawn, drawn_labels, pretrained, tmp_path, capsys):
    splits = ("train", "val")
    cfg = load_config(
        "custom/semantic_fpn_e3va_swin_t.py",
        [
            *HEAD,
            *(f"data.{split}.images={drawn.images}" for split in splits),
            *(f"data.{split}.labels={drawn_labels}" for split in splits),
            "data.train.short_edge=64",
            "data.val.short_edge=64",
            "data.train.crop=[64,64]",
            "data.classes=[background,red,blue]",
            f"train.init_checkpoint={pretrained}",
        ],
    )
    folder = tmp_path / "out"
    trained(cfg, folder)
    assert main(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert page.ids == PARTS
    assert "mean IoU of the classes in the image" in page.text
    (folder / "model_final.pth").unlink()
    assert main(["report", str(folder)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "lacks model_final.pth" in error
