"""The one exception that stands for a user's mistake, so that programs can print it as one line."""

from pathlib import Path


class UserError(Exception):
    """A mistake in what the user gave: its text says what was given, what was expected, what to do.

    Command lines print it without a traceback and exit with status 1.
    """

    @property
    def line(self) -> str:
        """The text as one line, also after a data-loader worker wrapped it in its traceback."""
        text = str(self)
        if "Original Traceback" in text:
            text = text.rsplit("UserError: ", 1)[-1]
        return " ".join(text.split())


def brief(error: BaseException) -> str:
    """Return an error's text on one line of at most 160 characters."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def unreadable_image(path: str | Path, error: BaseException | str) -> UserError:
    """Return the error for an image that is missing or does not decode.

    Args:
        path: the image file.
        error: the exception of the reader, or the reason as text.
    """
    if isinstance(error, FileNotFoundError):
        error = "the file does not exist"
    reason = error if isinstance(error, str) else brief(error)
    return UserError(
        f"image {path} cannot be read: {reason}; expected an image file that Pillow decodes; "
        "replace it, or remove it from the data"
    )
