"""As accurate as full fine-tuning? One small trunk, several tasks, every way of tuning.

    python benchmarks/accuracy [--photos FOLDER] [--streets FOLDER]

trains every method on every task with each learning rate of one grid (seed 0), takes for each the
rate with the best validation score, trains it with the other seeds, and evaluates those models on
the test split, once. Steps, order of images, heads and their start are the same for all methods.
Stopped, the same command goes on. Drawn tasks need nothing; --photos and --streets add real ones,
see benchmarks/accuracy/tasks.py for their layouts. In the output folder: results.md, results.json,
scores.png, curves.png, pairs.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accuracy.schedule import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
