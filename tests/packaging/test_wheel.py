"""A wheel that is built from the source distribution works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", "constraints.txt", "LICENSE"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "configs", "e3va"),
)
SCRIPT = """
import e3va, e3va.model_zoo
from e3va.weights.loading import DEMO_FILE
file = e3va.model_zoo.get_config_file("COCO/cascade_mask_rcnn_e3va_swin_t_1x.py")
compile(open(file).read(), file, "exec")
print(e3va.__file__)
print(file)
print(DEMO_FILE.stat().st_size)
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "E3VA_ZOO")}
    env["FVCORE_CACHE"] = str(cwd / "cache")
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that ``python -m build`` makes of the source distribution that it made before."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    clutter = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=clutter)
        else:
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=dist)
    assert len(list(dist.glob("*.tar.gz"))) == 1
    (file,) = dist.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel; its other packages are those of the environment of the test.

    They come by a line of a .pth file, which does not read the .pth files of that environment: an
    editable installation of this project does not count.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_no_tests_and_all_files_that_the_package_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in ("py.typed", "model_zoo/zoo.json", "assets/swin_mini.safetensors"):
        assert f"e3va/{file}" in names
    for file in (ROOT / "configs").rglob("*"):
        if file.suffix in (".py", ".yaml"):
            assert f"e3va/configs/{file.relative_to(ROOT / 'configs').as_posix()}" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"e3va"}


def test_the_command_runs(python, tmp_path):
    assert "train" in run(python.parent / "e3va", "--help", cwd=tmp_path)
    listing = run(python, "-m", "e3va", "zoo", "list", cwd=tmp_path)
    assert "swin_tiny_patch4_window7_224" in listing and "drawn_things" in listing


def test_configs_and_assets_are_found_inside_the_package(python, tmp_path):
    package, config, size = run(python, "-c", SCRIPT, cwd=tmp_path).splitlines()
    inside = str(python.parent.parent)
    assert package.startswith(inside) and config.startswith(inside)
    assert int(size) == (ROOT / "e3va" / "assets" / "swin_mini.safetensors").stat().st_size


def test_the_bundled_adapter_loads_on_the_bundled_trunk(python, tmp_path):
    text = run(python, "-m", "e3va", "info", "e3va://drawn_things", cwd=tmp_path)
    assert "mask_rcnn" in text and "mushroom" in text
    code = "from e3va.torchvision import load_model; load_model('e3va://drawn_things')"
    run(python, "-c", code, cwd=tmp_path)
