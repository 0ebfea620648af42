"""The highway: its config, the registry of adapter kinds, and the fast forms."""
