"""How the programs of this library end: with one line for a mistake, and a status."""

import sys
from collections.abc import Callable
from typing import Any

from .errors import UserError

INTERRUPTED = 130  # the shells' status for a process that Ctrl-C ended


def run_command(
    work: Callable[..., int | None], args: Any, how_to_go_on: Callable[[], str] = str
) -> int:
    """Run ``work(args)``; returns the exit status.

    What ``work`` returns, None for 0; 1 after a user's mistake, said in one line on stderr; 130
    after Ctrl-C, with what ``how_to_go_on`` gives then behind "interrupted".
    """
    try:
        return work(args) or 0
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted{how_to_go_on()}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output, such as "head", has seen enough
        return 0
