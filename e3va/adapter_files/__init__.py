"""Adapter files: everything that was trained, without the trunk."""
