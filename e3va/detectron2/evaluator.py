"""COCO's AP by Detectron2's evaluator, also for a model that finds nothing."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's evaluator of COCO's AP, in which a model that finds nothing scores 0.

    The score of a class without objects is NaN, and so is every score without any object.
    """

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        if coco_eval is None:  # there are no detections, for which Detectron2 has NaN
            coco_eval = self._score_nothing(iou_type)
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def _score_nothing(self, iou_type: str) -> COCOevalMaxDets:
        truth, nothing = self._coco_api, COCO()
        kept = {key: truth.dataset[key] for key in ("images", "categories")}
        nothing.dataset = {**kept, "annotations": []}
        with contextlib.redirect_stdout(io.StringIO()):
            nothing.createIndex()
        scores = COCOevalMaxDets(truth, nothing, iou_type)
        scores.params.maxDets = self._max_dets_per_image
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
        return scores
