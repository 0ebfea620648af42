"""As accurate as full fine-tuning? One small trunk, several tasks, every way of tuning.

    python benchmarks/accuracy [--photos FOLDER] [--streets FOLDER]

Trains every method on every task with each learning rate of one grid (seed 0), chooses for each
method the rate with the best validation score, trains with that rate and the other seeds, and
evaluates those models on the test split, once. Steps, order of images, heads and their first
weights are the same for all methods. After an interruption the same command continues. The drawn
tasks need no data; --photos and --streets add real ones, see benchmarks/accuracy/tasks.py for the
layouts of their folders. The output folder gets results.md, results.json, scores.png, curves.png
and pairs.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accuracy.schedule import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
