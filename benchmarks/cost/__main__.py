"""Measure the bytes, peak memory, seconds and FLOPs of a training step, for all ways of tuning.

    python benchmarks/cost --presets swin_t swin_l --precision fp32 bf16 --output output/cost

Builds Cascade Mask R-CNN over a Swin backbone once for each method, each in its own process, and
trains it on one drawn batch. The processes take turns (A B C A B C …), so that other load on the
machine affects all of them alike; only one computes at any time. Weights are random and equal, and
the learning rate is zero, so every step does the same work. --backbone measures a backbone without
neck and heads, --growth measures bytes over image sizes and batch sizes instead, --cap GIB limits
the GPU memory of each process.

In the output folder: cost.md, cost.json, and a picture cost_PRESET.png for each preset (growth.md,
growth.json, growth.png with --growth). A run with other settings and the same --output adds its
tables, and replaces those of equal settings.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cost.schedule import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
