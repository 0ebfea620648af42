from detectron2.config import LazyCall as L

from e3va.detectron2 import E3VASwin
from e3va.highway import highway_config

# out_features must be the levels that the neck reads: norms of other levels would get no gradient.
bottom_up = L(E3VASwin)(
    preset="swin_t",
    # A recipe (e3va_chain, e3va_wide, e3va, frozen or full) and changes to it, such as rank=24.
    highway=L(highway_config)(recipe="e3va_chain"),
    memory="standard",
    trunk_precision="auto",
    out_features=["p0", "p1", "p2", "p3"],
)

# Swin is pretrained on RGB images with ImageNet's mean and standard deviation.
pixel_mean = [123.675, 116.28, 103.53]
pixel_std = [58.395, 57.12, 57.375]
