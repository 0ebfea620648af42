"""Optional packages are asked for here and nowhere else."""

import importlib
from types import ModuleType

from .errors import UserError

HOW_TO_INSTALL = {
    "detectron2": "follow Detectron2's installation page, "
    "https://detectron2.readthedocs.io/tutorials/install.html (it is on no package index)",
    "cv2": "pip install opencv-python",
    "iopath": "pip install 'iopath<0.1.10'",
    "matplotlib": "pip install matplotlib",
    "PIL": "pip install pillow",
    "peft": "pip install peft",
    "pooch": "pip install pooch",
    "pycocotools": "pip install pycocotools",
    "safetensors": "pip install safetensors",
    "tensorboard": "pip install tensorboard",
    "timm": "pip install timm",
    "torchvision": "pip install torchvision",
    "tqdm": "pip install tqdm",
}


def require(name: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: the module's import name, a key of ``HOW_TO_INSTALL`` or a submodule of one.
        purpose: what needs it, as the subject of the error's sentence.

    Raises:
        UserError: the package is not installed; the text says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is there and itself lacks something: that message is the true one
        raise UserError(
            f"{purpose} needs {package}, which is not installed: {HOW_TO_INSTALL[package]}"
        ) from None
