"""A user's mistake is one line that names the nearest choice."""

import pytest

from e3va import UserError
from e3va.utils.errors import brief, check_choice, unknown_choice, unreadable_image


def test_an_unknown_choice_names_the_nearest_one():
    check_choice("memory", "lean", ["standard", "lean"])
    for value, hint in (("leam", "did you mean 'lean'"), ("x", "standard, lean"), ([], "[]")):
        with pytest.raises(UserError) as caught:
            check_choice("memory", value, iter(["standard", "lean"]))
        assert caught.value.line.startswith(f"memory {value!r}") and hint in caught.value.line
    assert "(none)" in str(unknown_choice("option", "rank", []))


def test_texts_are_one_line():
    error = UserError("Caught UserError\nOriginal Traceback:\n  File x\nUserError: a.png is\nbad")
    assert error.line == "a.png is bad"
    assert brief(ValueError("two\nlines " + "x" * 200)) == ("two lines " + "x" * 200)[:160]
    assert brief(KeyError(3)) == "KeyError" and brief(ValueError()) == "ValueError"
    assert "a.png" in unreadable_image("a.png", FileNotFoundError()).line
