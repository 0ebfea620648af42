"""Packaging; constraints.txt beside this file pins the versions that were tested."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "e3va/_version.py").read_text()).group(1)

# What the "e3va" command needs. The core needs torch alone and asks for the rest when it is used.
COMMAND = [
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "numpy>=1.24",
    "pillow>=10.1",
    "pycocotools>=2.0.6",
    "safetensors>=0.4",
    "torch>=2.10",  # before, a file read with weights_only could run code (CVE-2026-24747),
    "torchvision>=0.25",
    "tqdm>=4.60",
]

# What the Detectron2 host needs beside Detectron2 itself, which is on no package index.
DETECTRON2 = [
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1,<2.4",
    "opencv-python>=4.8",
    "pygments>=2.2",
    "pyyaml>=6",
    "setuptools<81",  # Detectron2 imports pkg_resources
    "tensorboard>=2.12",
]

setup(
    name="e3va",
    version=VERSION,
    description="Memory-efficient fine-tuning of Swin backbones along an adapter highway",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The config files lie beside the package in a checkout and inside it when installed.
    packages=[*find_packages(include=["e3va", "e3va.*"]), "e3va.configs"],
    package_dir={"e3va.configs": "configs"},
    package_data={
        "e3va": ["assets/**", "model_zoo/*.json"],
        "e3va.configs": ["**/*.py", "**/*.yaml"],
    },
    entry_points={"console_scripts": ["e3va = e3va.cli.main:main"]},
    install_requires=COMMAND,
    extras_require={
        "detectron2": DETECTRON2,
        "accuracy": ["matplotlib>=3.7", "peft>=0.13"],
        "plot": ["matplotlib>=3.7"],
        "tensorboard": ["tensorboard>=2.12"],
        "test": [
            "hypothesis>=6.90",
            "matplotlib>=3.7",
            "peft>=0.13",
            "pytest>=8",
            "ruff>=0.9",
            "tensorboard>=2.12",
            "timm>=1.0.9",
            "transformers>=5.24",
        ],
    },
)
