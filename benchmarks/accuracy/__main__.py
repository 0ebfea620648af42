"""As accurate as full fine-tuning? One trunk, several tasks, every way of tuning.

    python benchmarks/accuracy [--photos FOLDER] [--streets FOLDER] ...

makes three comparisons:

- At equal steps. Every method trains on four of the tasks with several learning rates (seed 0), a
  factor of four apart. Each method keeps one for label maps and one for boxes and masks, those with
  the best validation scores; while the best is the lowest or the highest, one more is tried beyond
  it. Then the method trains on all tasks with these rates. Steps, order of images, heads and their
  first weights are the same for all methods.
- At equal seconds. Every method trains for as many steps as fit in the seconds of full fine-tuning
  (at most four times its steps), with the same rates and seeds.
- The front of ranks: score against bytes kept for the backward pass and against trained parameters.

Every model that is compared is evaluated on the test split, once. After an interruption the same
command continues: it skips the runs that are finished. The drawn tasks need no data; the options
that name folders add real tasks, see benchmarks/accuracy/loaders.py for the layouts. --tasks,
--methods, --seeds, --rates and --comparisons choose a part; --rates-of takes the learning rates of
earlier results, without the search. The output folder gets results.md, results.json, scores.png,
curves.png, front.png, pairs.png and pairs_given.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accuracy.schedule import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
