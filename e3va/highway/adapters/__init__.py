"""Adapter kinds, one file each."""
