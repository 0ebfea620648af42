"""TensorBoard's files, which its writer writes in a thread of its own."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .atomic import writing


@contextmanager
def writing_events(folder: str | os.PathLike) -> Iterator[None]:
    """Report an error of TensorBoard's writer in the block on one line, see :func:`writing`.

    The thread's error is raised again by the next call of the writer, so its traceback is not
    printed.
    """
    threading.excepthook = _leave_to_writer
    with writing(os.path.join(folder, "events.out.tfevents")):
        yield


def _leave_to_writer(found: threading.ExceptHookArgs) -> None:
    if not type(found.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(found)
