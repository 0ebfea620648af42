"""Operators that are independent of Swin."""
