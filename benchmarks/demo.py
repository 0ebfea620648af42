"""The demonstration: what the highway saves, then a Cascade Mask R-CNN trained along it.

    python benchmarks/demo.py [--output output/demo] [--steps 150]

It needs no downloads: the pictures are drawn and the trunk is small and random, so what it shows is
that everything runs, not how accurate a pretrained trunk is. Without Detectron2 the training is
left out.
"""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(script: str, *arguments: str) -> None:
    """Run one of the project's scripts as a user would, showing the command."""
    print(f"\n$ python {script} {' '.join(arguments)}\n", flush=True)
    subprocess.run([sys.executable, str(ROOT / script), *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--steps", type=int, default=150, help="training steps")
    args = parser.parse_args()
    out = args.output
    run(
        "benchmarks/saved_bytes.py", "--preset", "swin_t", "--size", "400x600", "--output", str(out)
    )
    if importlib.util.find_spec("detectron2") is None:
        print(
            "\nDetectron2 is not installed, so there is no training to show: it is on no package "
            "index; see https://detectron2.readthedocs.io/tutorials/install.html"
        )
        return
    data, trained = out / "data", out / "trained"
    run("benchmarks/shapes.py", str(data), "--train", "40", "--val", "10", "--size", "128")
    run(
        "projects/E3VA/lazyconfig_train_net.py",
        *("--config-file", "custom/cascade_mask_rcnn_e3va_swin_t.py"),
        *(f"data.{split}.json={data}/{split}.json" for split in ("train", "val")),
        *(f"data.{split}.images={data}/{split}" for split in ("train", "val")),
        *("data.train.short_edge=[128]", "data.val.short_edge=128"),
        *("model.backbone.bottom_up.preset=swin_nano", "model.roi_heads.batch_size_per_image=64"),
        *("dataloader.train.total_batch_size=4", "dataloader.train.num_workers=0"),
        *("dataloader.test.num_workers=0", f"train.output_dir={trained}", "optimizer.lr=5e-4"),
        *(f"train.max_iter={args.steps}", "train.eval_period=0", "train.clip_norm=5.0"),
    )
    run(
        "projects/E3VA/demo.py",
        *("--config-file", f"{trained}/config.yaml", "--weights", f"{trained}/model_final.pth"),
        *("--input", f"{data}/val", "--output", f"{out}/drawn", "--confidence-threshold", "0.5"),
    )
    print(
        f"\nLook at {out}/saved_bytes.png and {out}/drawn.\n"
        "Next, your own COCO-format data and a pretrained Swin:\n"
        "  python projects/E3VA/lazyconfig_train_net.py \\\n"
        "    --config-file custom/cascade_mask_rcnn_e3va_swin_t.py \\\n"
        "    data.train.json=… data.train.images=… data.val.json=… data.val.images=… \\\n"
        "    train.init_checkpoint=swin_tiny_patch4_window7_224.pth"
    )


if __name__ == "__main__":
    main()
