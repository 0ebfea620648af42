"""Data sets: COCO format, label maps, sampling, and the check before training."""
