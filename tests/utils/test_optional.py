"""Optional packages are imported in one place, which says how to install a missing one."""

import subprocess
import sys

import pytest

from e3va import UserError
from e3va.utils.optional import require


def test_a_missing_package_gives_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)  # as if it were not installed
    with pytest.raises(UserError, match="the zoo needs safetensors.*pip install safetensors"):
        require("safetensors", "the zoo")
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(UserError, match="https://detectron2.readthedocs.io"):
        require("detectron2", "this")
    assert require("json", "nobody").loads("1") == 1


def test_an_import_error_inside_an_installed_package_is_raised(monkeypatch, tmp_path):
    (tmp_path / "half_installed.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        require("half_installed", "this")


@pytest.mark.parametrize("module", ["e3va", "e3va.model_zoo", "e3va.data"])
def test_importing_the_library_imports_no_framework(module):
    frameworks = ("detectron2", "torchvision", "e3va.detectron2", "e3va.torchvision")
    script = f"import sys, {module}; print([m for m in {frameworks} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
