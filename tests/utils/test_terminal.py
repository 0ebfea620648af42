"""Text that a terminal cannot encode is escaped."""

import io
import os

from e3va.utils.terminal import escape_unprintable


def test_characters_without_an_encoding_become_escapes():
    for encoding, expected in (
        ("ascii", b"b\\xe9ton \\udce9 "),
        ("utf-8", b"b\xc3\xa9ton \\udce9 "),
    ):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        escape_unprintable([stream, None, io.StringIO()])  # the others have no encoding
        stream.write(f"béton {os.fsdecode(bytes([0xE9]))} ")
        stream.flush()
        assert stream.buffer.getvalue() == expected
