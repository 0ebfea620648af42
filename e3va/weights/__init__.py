"""Pretrained weights: safe reading, key layouts, geometry and fingerprints."""
