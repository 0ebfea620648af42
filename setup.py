"""Packaging. The file constraints.txt pins the versions that were tested together."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "e3va/_version.py").read_text()).group(1)

# The requirements of the e3va command. The core needs only torch.
COMMAND = [
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "jinja2>=3.1",
    "numpy>=1.24",
    "pillow>=10.1",
    "pooch>=1.8,<2",
    "pycocotools>=2.0.6",
    "safetensors>=0.4",
    "torch>=2.10",  # earlier versions can run code from a weights_only file (CVE-2026-24747)
    "torchvision>=0.25",
    "tqdm>=4.60",
]

# What reading YOLO folders, Pascal VOC and labelme needs: e3va.data.formats says why.
FORMATS = [
    "defusedxml>=0.7.1",
    "pyyaml>=6",
    "supervision>=0.31.2,<0.32",  # its readers of single files, which may change
]

# What e3va.detectron2 needs besides the above and Detectron2, which is on no package index.
DETECTRON2 = [
    "omegaconf>=2.1,<2.4",
    "opencv-python>=4.8",
    "pygments>=2.2",
    "pyyaml>=6",
    "setuptools<81",  # Detectron2 imports pkg_resources
    "tensorboard>=2.12",
]

# What hf:// addresses need.
HUB = ["huggingface_hub>=1.31,<3"]

# What e3va export needs, and e3va predict for an exported model.
EXPORT = ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"]

# What e3va serve needs.
SERVE = ["fastapi>=0.110", "uvicorn>=0.27"]

setup(
    name="e3va",
    version=VERSION,
    description="Memory-efficient fine-tuning of Swin backbones along an adapter highway",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The config files lie beside the package in a checkout, and inside it in an installation.
    packages=[*find_packages(include=["e3va", "e3va.*"]), "e3va.configs"],
    package_dir={"e3va.configs": "configs"},
    package_data={
        "e3va": ["py.typed", "assets/**", "model_zoo/*.json"],
        "e3va.configs": ["**/*.py", "**/*.yaml"],
    },
    entry_points={"console_scripts": ["e3va = e3va.cli.main:main"]},
    install_requires=COMMAND,
    extras_require={
        "detectron2": DETECTRON2,
        "export": EXPORT,
        "formats": FORMATS,
        "accuracy": ["matplotlib>=3.7", "scipy>=1.11,<2"],
        "hub": HUB,
        "plot": ["matplotlib>=3.7"],
        "serve": SERVE,
        "tensorboard": ["tensorboard>=2.12"],
        "test": [
            *EXPORT,
            *FORMATS,
            *HUB,
            *SERVE,
            "build>=1.2",
            "hypothesis>=6.90",
            "import-linter>=2.3",
            "ipykernel>=6.29",
            "matplotlib>=3.7",
            "nbmake>=1.5",
            "peft>=0.13",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "scipy>=1.11,<2",
            "setuptools>=70.1",
            "tensorboard>=2.12",
            "timm>=1.0.9",
            "transformers>=5.24",
        ],
    },
)
