from .mask_rcnn import model

# Boxes only: StandardROIHeads without its mask head.
for _key in ("mask_in_features", "mask_pooler", "mask_head"):
    del model.roi_heads[_key]
