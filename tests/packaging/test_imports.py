"""Optional packages: imported only when they are used, with advice where they are missing.

The import contracts in pyproject.toml say which room may import which package.
"""

import subprocess
import sys

import pytest

from e3va import UserError
from e3va.utils.optional import HOW_TO_INSTALL, require


@pytest.mark.parametrize("module", ["e3va", "e3va.model_zoo"])
def test_importing_the_library_or_its_zoo_imports_no_framework(module):
    frameworks = ("detectron2", "torchvision", "e3va.detectron2", "e3va.torchvision")
    script = f"import sys, {module}; print([m for m in {frameworks} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)  # as if it were not installed
    with pytest.raises(UserError, match="the zoo.*safetensors.*pip install safetensors"):
        require("safetensors", "the zoo")
    assert "https://detectron2" in HOW_TO_INSTALL["detectron2"]
    assert require("json", "a test").loads("1") == 1
