# Detectron2's keys of "train", and keys of the E³VA trainer, which other training scripts ignore.
import torch

train = dict(
    output_dir="./output",
    # A pretrained Swin, a checkpoint of a whole model, or an adapter (its folder): a path or an
    # address of the model zoo (e3va://...) or of the Hugging Face Hub (hf://...).
    init_checkpoint="",
    # E³VA: the trunk of an adapter in init_checkpoint, a path or an address. With "", the adapter's
    # description says where the trunk is.
    trunk="",
    # E³VA: parts of an adapter to load. "backbone" loads only the highway, for another task.
    adapter_parts="all",
    # E³VA: whether to load an adapter on a trunk with other weights than it was trained on.
    any_trunk=False,
    max_iter=90000,
    # Mixed precision, on CUDA and on CPU. E³VA: dtype is "bf16" or "fp16".
    amp=dict(enabled=False, dtype="bf16"),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=5),
    eval_period=5000,
    log_period=20,
    device="cuda" if torch.cuda.is_available() else "cpu",
    seed=0,
    cudnn_benchmark=False,
    # "high" lets float32 products run in TF32.
    float32_precision="",
    # E³VA: number of parts of a batch; one is in memory at a time, and the batch stays the same.
    accumulate=1,
    # E³VA: largest 2-norm of the gradient; 0 for no limit.
    clip_norm=0.0,
    # E³VA: whether samples of anchors and boxes depend on the image and not on the process. Any
    # number of processes then gives the same weights, to rounding.
    sample_by_image=False,
    # E³VA: name of this config in the project; load_config fills it in.
    config_name="",
)
