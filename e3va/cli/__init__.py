"""The ``e3va`` command, one file for each subcommand."""
