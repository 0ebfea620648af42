from detectron2.config import LazyCall as L

from e3va.detectron2 import E3VASwin

# The levels that the neck does not read must not be there: their norms would get no gradient.
bottom_up = L(E3VASwin)(
    preset="swin_t",
    method="e3va",
    rank=None,  # None: the method's own, see E3VABackbone
    reduction=4,
    taps=None,
    downsample=None,
    memory="standard",
    trunk_precision="auto",
    out_features=["p0", "p1", "p2", "p3"],
)

# Swin is pretrained on RGB images with ImageNet's mean and deviation.
pixel_mean = [123.675, 116.28, 103.53]
pixel_std = [58.395, 57.12, 57.375]
