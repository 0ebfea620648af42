"""A user's own COCO-format data, and what a config reads of them."""

import json

from PIL import Image

CASCADE, BOXES = "custom/cascade_mask_rcnn_e3va_swin_t.py", "custom/retinanet_e3va_swin_t.py"
LABELS = "custom/semantic_fpn_e3va_swin_t.py"


class OwnData:
    """Pictures of 64×48 in ``images``, each with one object of 20×20, and their COCO file."""

    def __init__(self, folder, count):
        self.images, self.json = folder / "images", folder / "own.json"
        self.images.mkdir(parents=True)
        self.data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nut"}]}
        for number in range(1, count + 1):
            Image.new("RGB", (64, 48), (90, 9 * number, 60)).save(self.images / f"{number}.png")
            size = {"width": 64, "height": 48}
            self.data["images"].append({"id": number, "file_name": f"{number}.png", **size})
            self.data["annotations"].append(square(number, number, 10, 10, 20))
        self.save()

    def save(self):
        self.json.write_text(json.dumps(self.data))

    def given(self, split):
        return [f"data.{split}.json={self.json}", f"data.{split}.images={self.images}"]

    @property
    def paths(self):
        return str(self.json), str(self.images)


def square(identity, image, x, y, side, **changes):
    outline = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {
        **{"id": identity, "image_id": image, "category_id": 1, "iscrowd": 0},
        **{"bbox": [x, y, side, side], "area": side * side, "segmentation": [outline]},
        **changes,
    }


def names(records):
    return [record["file_name"].rpartition("/")[2] for record in records]


def nodes(cfg):
    return cfg.dataloader.train.dataset, cfg.dataloader.test.dataset
