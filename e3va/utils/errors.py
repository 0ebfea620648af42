"""The one exception that stands for a user's mistake, so that programs can print it as one line."""


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
