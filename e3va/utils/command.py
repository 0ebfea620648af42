"""The exit of a command: one line for a mistake, and a status."""

import sys
from collections.abc import Callable
from typing import Any

from .errors import UserError
from .terminal import escape_unprintable

INTERRUPTED = 130  # the shells' status for a process that Ctrl-C ended


def run_command(
    work: Callable[..., int | None], args: Any, how_to_go_on: Callable[[], str] = str
) -> int:
    """Run ``work(args)`` and return its exit status, 0 for None.

    A :class:`UserError` is printed as one line on stderr, with status 1. Ctrl-C prints
    "interrupted" and the result of ``how_to_go_on``, with status 130.
    """
    escape_unprintable()
    try:
        return work(args) or 0
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted{how_to_go_on()}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output, such as "head", has closed the pipe
        return 0
