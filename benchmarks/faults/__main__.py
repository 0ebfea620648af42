"""Put trainings and files through bad luck, and count what is lost.

    python benchmarks/faults [--faults kill disk ...] [--scale 1.0] [--seed 0] [--output DIR]

kill       SIGKILL at a random moment of a training, in one process and two, then resume
disk       a full disk, a read-only folder, a folder that disappears or is a file
twice      two trainings into one folder at once
data       an image replaced, truncated or removed during a training
group      a process of two or four dies, hangs or is suspended
fuzz       broken COCO files, adapter configs, zoo tables, safetensors, pickles
endurance  thousands of predictions, steps and evaluations in one process; threads

Everything is drawn from --seed. --scale 0.1 makes a tenth of the tries. In the output folder:
faults.md, a table of faults, tries and losses, and faults.json, written again after each try. A
call with other --faults and the same --output replaces only the tries of those faults. A loss is
what a user would lose or not understand: a checkpoint, a wrong result, a traceback, a process that
hangs. The disk faults need root, for a small tmpfs.
"""

import os
import sys
from pathlib import Path

# The trainings are forked from this process, which must have one thread; they compute with one.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faults.schedule import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
