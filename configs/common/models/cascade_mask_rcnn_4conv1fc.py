from .cascade_mask_rcnn import model

# The box heads of Swin's COCO results: four convolutions with SyncBN and one fully connected layer.
for _head in model.roi_heads.box_heads:
    _head.conv_dims = [256, 256, 256, 256]
    _head.conv_norm = "SyncBN"
    _head.fc_dims = [1024]
