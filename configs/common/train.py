# Detectron2's keys of "train", and those that the E³VA trainer adds (marked; others ignore them).
import torch

train = dict(
    output_dir="./output",
    # A pretrained Swin, a checkpoint of a whole model, or an adapter (its folder); a path, or an
    # address of the model zoo (e3va://...).
    init_checkpoint="",
    # Added, for an adapter there: the trunk it was trained on, if it is not found where the adapter
    # says (a path or an address);
    trunk="",
    # "backbone" to take its highway alone, for another task than its own;
    adapter_parts="all",
    # whether to take it though the trunk is another one.
    any_trunk=False,
    max_iter=90000,
    # Mixed precision. Added: dtype, "bf16" or "fp16"; on CUDA and on CPU.
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
    # Added: parts that each batch is divided into, to fit a smaller card; the batch stays the same.
    accumulate=1,
    # Added: largest 2-norm of the gradient; 0 for no limit.
    clip_norm=0.0,
    # Added: whether samples of anchors and boxes depend on the image, not on the process; the same
    # weights then come out of any number of processes, to rounding.
    sample_by_image=False,
    # Added: which of the project's configs this is; filled in when it is loaded.
    config_name="",
)
