# Objects and label maps of the same images: two models over one trunk, which runs once for each
# batch. Each is a config of its own, with its own highway, neck, heads and learning rate; the label
# maps train on the images and augmentations of the objects.
#   data.train.json=… data.train.images=… data.train.labels=… labels.data.classes=[background,…]
# An override with the name of a task before its key is for that task, any other one for both.
tasks = dict(
    instances="custom/cascade_mask_rcnn_e3va_swin_t.py",
    labels="custom/semantic_fpn_e3va_swin_t.py",
)
