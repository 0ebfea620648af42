"""Imports of optional packages."""

import importlib
from types import ModuleType

from .errors import UserError

HOW_TO_INSTALL = {
    "detectron2": "follow Detectron2's installation page, "
    "https://detectron2.readthedocs.io/tutorials/install.html (it is on no package index)",
    "cv2": "pip install opencv-python",
    "iopath": "pip install 'iopath<0.1.10'",
    "PIL": "pip install pillow",
    **dict.fromkeys(("defusedxml", "supervision", "yaml"), "pip install 'e3va[formats]'"),
    **dict.fromkeys(("fastapi", "uvicorn"), "pip install 'e3va[serve]'"),
    "huggingface_hub": "pip install 'e3va[hub]'",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "pip install 'e3va[export]'"),
    "pillow_heif": "pip install pillow-heif",
}


def require(name: str, purpose: str) -> ModuleType:
    """Import an optional module; ``purpose`` is what needs it, for the message.

    Raises:
        UserError: the package is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is installed, but a package that it needs is not
        how = HOW_TO_INSTALL.get(package, f"pip install {package}")
        raise UserError(f"{purpose} needs {package}, which is not installed: {how}") from None
