"""The exception for a user's mistake, and texts that several modules share."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class UserError(Exception):
    """A mistake in what the user gave.

    The text says what was given, what was expected and what to do. Commands print it on one line,
    without a traceback, and exit with status 1.
    """

    @property
    def line(self) -> str:
        """The text on one line, without the traceback that a data-loader worker adds."""
        text = str(self)
        if "Original Traceback" in text:
            text = text.rsplit("UserError: ", 1)[-1]
        return " ".join(text.split())


def unknown_choice(what: str, value: Any, choices: Iterable[str]) -> UserError:
    """Return the error for a value that is not a choice; ``what`` is the subject, like "memory"."""
    choices = list(choices)
    nearest = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"{what} {value!r}: expected one of {', '.join(choices) or '(none)'}{hint}")


def check_choice(what: str, value: Any, choices: Iterable[str]) -> None:
    """Raise a :class:`UserError` if a value is not one of several choices."""
    choices = list(choices)
    if value not in choices:
        raise unknown_choice(what, value, choices)


def brief(error: BaseException) -> str:
    """Return an error's text on one line of at most 160 characters."""
    text = " ".join(str(error).split())[:160]
    # The text of a KeyError is only the key.
    return text if any(c.isalpha() for c in text) else type(error).__name__


def unreadable_image(path: str | Path, error: BaseException | str) -> UserError:
    """Return the error for an image; ``error`` is the reader's exception or the reason as text."""
    if isinstance(error, FileNotFoundError):
        error = "the file does not exist"
    reason = error if isinstance(error, str) else brief(error)
    return UserError(
        f"image {path} cannot be read: {reason}; expected an image file that Pillow decodes; "
        "replace it, or remove it from the data"
    )
