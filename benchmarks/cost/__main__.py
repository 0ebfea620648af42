"""What a training step costs: bytes, peak memory, seconds, FLOPs; all ways of tuning in one run.

    python benchmarks/cost --presets swin_t swin_l --precision fp32 bf16 --output output/cost

builds Cascade Mask R-CNN over a Swin backbone once for each method, each in a process of its own,
and trains it on one drawn batch. The processes take turns (A B C A B C …), so that what else the
machine does falls on all of them alike; only one computes at any time. Weights are random and
equal, the learning rate is zero: every step does the same work. --backbone leaves neck and heads
out, --growth measures bytes over image sizes and batch sizes instead, --cap GIB lets no process
allocate more than that on a GPU.

In the output folder: cost.md, cost.json, and a picture cost_PRESET.png for each preset (growth.md,
growth.json, growth.png with --growth). A further run with other settings and the same --output adds
its tables, and replaces those of equal settings.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cost.schedule import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
