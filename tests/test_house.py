"""The order of the house: imports run downward, optional packages are asked for in one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from e3va import UserError
from e3va.utils.optional import HOW_TO_INSTALL, require

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "e3va"
CORE = sorted(PACKAGE.glob("*.py"))
FRAMEWORKS = ("detectron2", "torchvision")
ABOVE_THE_CORE = ("e3va.detectron2", "e3va.torchvision", "e3va.model_zoo", "e3va.data")


def imports(path: Path, text: str | None = None) -> set[str]:
    """Full names of the modules that a file, or ``text`` in its place, imports."""
    package = ("e3va", *path.relative_to(PACKAGE).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(text or path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names.add(".".join([*base, *filter(None, [node.module])]))
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_the_core_needs_torch_alone_and_knows_no_framework(path):
    for name in imports(path):
        top = name.split(".")[0]
        assert top in sys.stdlib_module_names or top in ("torch", "e3va"), name
        assert not name.startswith(ABOVE_THE_CORE), name


def test_looking_at_data_needs_no_framework():
    files = list((PACKAGE / "data").glob("*.py"))
    assert len(files) > 5
    for path in files:
        for name in imports(path):
            assert not name.startswith((*ABOVE_THE_CORE[:3], *FRAMEWORKS)), path


def test_frameworks_do_not_know_each_other():
    for framework, other in (FRAMEWORKS, FRAMEWORKS[::-1]):
        for path in (PACKAGE / framework).glob("*.py"):
            assert not any(name.startswith(f"e3va.{other}") for name in imports(path)), path


@pytest.mark.parametrize("module", ["e3va", "e3va.model_zoo"])
def test_importing_the_library_or_its_zoo_imports_no_framework(module):
    """The zoo builds models of both frameworks, and asks for them when it does."""
    frameworks = ("detectron2", "torchvision", "e3va.detectron2", "e3va.torchvision")
    script = f"import sys, {module}; print([m for m in {frameworks} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("path", sorted((PACKAGE / "model_zoo").glob("*.py")), ids=lambda p: p.name)
def test_no_file_of_the_zoo_imports_a_framework_when_it_is_imported(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    names = imports(path, ast.unparse(tree))
    assert not [name for name in names if name.startswith(ABOVE_THE_CORE[:2])]


def test_files_stay_short():
    files = [
        p
        for folder in ("e3va", "configs", "projects", "tests", "benchmarks")
        for p in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 40
    assert [p for p in files if len(p.read_text().splitlines()) > 400] == []


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)  # as if it were not installed
    with pytest.raises(UserError, match="the zoo needs safetensors.*pip install safetensors"):
        require("safetensors", "the zoo")
    assert "it is on no package index" in HOW_TO_INSTALL["detectron2"]
    assert require("json", "nobody").loads("1") == 1
