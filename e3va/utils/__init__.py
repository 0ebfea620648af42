"""Errors, tables, seeds, optional imports: small tools that every room uses."""
