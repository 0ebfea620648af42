from .mask_rcnn import model

# Boxes alone: StandardROIHeads without what its masks need.
for _key in ("mask_in_features", "mask_pooler", "mask_head"):
    del model.roi_heads[_key]
