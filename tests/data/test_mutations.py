"""Mutated COCO files: one clear line or right scores, and the check agrees with training."""

import contextlib
import io
import json
import math

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from e3va import UserError
from e3va.data.check_instances import check_instances
from e3va.data.coco import CocoData, ReadOptions, category_names, load_json, read_content
from e3va.data.problems import KINDS, REFUSED

from .mutations import SEEDS, good_file, mutate, write_mutation
from .test_check_instances import ONLY_CHECKED


def perfect_scores(data: CocoData, path, kind: str) -> tuple[float, int]:
    """Return COCO's AP of the objects themselves as predictions, and their number."""
    data.write(path)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        objects = [dict(a, score=1.0) for a in truth.dataset["annotations"] if not a["iscrowd"]]
        if not objects:
            return math.nan, 0
        results = []
        for a in objects:
            own = {"bbox": a["bbox"]} if kind == "bbox" else {"segmentation": truth.annToRLE(a)}
            results.append({k: a[k] for k in ("image_id", "category_id", "score")} | own)
        run = COCOeval(truth, truth.loadRes(results), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0]), len(objects)


def check_one(folder, seed: int) -> str:
    """Read a mutated file for the check, for training and for scoring; return what happened."""
    file, images, text = write_mutation(folder, seed)
    options = ReadOptions(masks=None, training=True)
    try:
        content = load_json(file)
        found = check_instances(content, file, images)
    except UserError as error:
        assert "\n" not in str(error)
        with pytest.raises(UserError):
            read_content(load_json(file), file, images, options)
        return "refused"
    kinds = found.problems.counts()
    assert all("\n" not in p.text and len(p.text) < 600 for p in found.problems), text
    refused = {kind for kind in kinds if KINDS[kind].severity == REFUSED}
    if refused:
        # An image of another size is refused when training reaches it.
        with contextlib.nullcontext() if refused == {"image_size"} else pytest.raises(UserError):
            read_content(content, file, images, options)
        return "refused"
    trained = read_content(content, file, images, options)
    assert trained.notes == {k: n for k, n in kinds.items() if k not in ONLY_CHECKED}, text
    assert category_names(content, file) == trained.class_names == [r.name for r in found.classes]
    scored = read_content(content, file, images, ReadOptions(masks=found.masks))
    score, count = perfect_scores(scored, folder / "truth.json", "bbox")
    assert count == sum(len(row.sizes) for row in found.classes) > 0, text
    assert score == pytest.approx(1, abs=1e-9), text
    if scored.masks:
        assert perfect_scores(scored, folder / "truth.json", "segm")[0] == pytest.approx(1), text
    return "changed" if trained.notes else "as it is"


def test_the_good_file_is_good(tmp_path):
    file, images, _ = write_mutation(tmp_path, 0)
    data = read_content(good_file(), file, images)
    assert not data.notes and data.class_names == ["red", "blue"]
    assert perfect_scores(data, tmp_path / "t.json", "segm") == (pytest.approx(1), 3)
    assert check_instances(good_file(), file, images).problems == []


@pytest.mark.parametrize("seed", SEEDS)
def test_mutations(tmp_path, seed):
    check_one(tmp_path, seed)


def test_mutations_reach_every_level():
    texts = " ".join(mutate(seed)[1] for seed in SEEDS)
    for word in ("file", "image", "category", "annotation", "bbox", "segmentation", "polygon"):
        assert f" {word} " in texts
    for word in ("drop", "retype", "nest", "null", "huge", "negative", "duplicate"):
        assert f" {word}" in texts
    assert json.dumps(mutate(3)) == json.dumps(mutate(3))
