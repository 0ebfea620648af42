"""Check and measure everything on one CUDA card: make gpu.

    python benchmarks/gpu [--parts correctness steps ...] [--output output/gpu]

Needs nothing but the card and what is installed; Detectron2 and timm are used if they are there.
Each part runs in a process of its own, at most --seconds long, and the report is written after each
part, so a run that is cut off leaves what it had: gpu.md, gpu.json, and pictures. --device cpu
--short runs every part in small, to show that the parts work; its figures mean nothing.

correctness   outputs and gradients beside float64 on the CPU, trainings, files, NCCL, waits
steps         time and memory of a training step beside full fine-tuning (see benchmarks/cost)
capacity      the largest image and batch that fit into 4, 6, 8 and 11 GiB
forward       the trunk's forward pass in several forms, beside Detectron2's and timm's
recipes       step times of published recipes, and the hours that they would take
predict       predicted images a second, and the operators of a training step that take longest
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu.schedule import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
