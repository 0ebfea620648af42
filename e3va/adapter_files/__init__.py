"""Adapter files: all that was trained, without the trunk."""
