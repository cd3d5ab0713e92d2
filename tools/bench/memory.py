"""Activations kept for backward, counted in bytes; the process's own peak beside them; the largest batch that fits."""

import multiprocessing
from pathlib import Path

from tools.bench import peers
from tools.bench.rounds import Row

MODES = {"plain": {}, "selective": {"selective_checkpoint": True}, "checkpoint": {"use_checkpoint": True}}
# What ours may take of timm's bytes, as the ratio of timm's by ours; at bf16, which is what GPUs train in.
BARS = {"selective": 1 / 0.75, "checkpoint": 1.0}
BYTES_A_PARAMETER = 16  # fp32 weight, gradient and AdamW's two moments
MEBI, GIBI = 2**20, 2**30


def add_flags(parser) -> None:
    """This ruler's own flags."""
    peers.add_size_flag(parser)
    parser.add_argument("--budget", type=float, default=8.0, metavar="GIB", help="the card to fill (default 8)")
    parser.add_argument(
        "--peak-batch", type=int, default=4, metavar="N", help="images of the check by new processes (4); 0: no check"
    )


def measure(args) -> list[Row]:
    """For fp32 and bf16 autocast, each mode of ours beside timm's same mode (selective: timm's plain)."""
    return [compare(args, mode, dtype) for dtype in ("fp32", "bf16") for mode in MODES]


def compare(args, mode: str, dtype: str) -> Row:
    """The ratio of what is kept, timm's by ours; what fits goes by the peak of a step, which recomputes as well."""
    from tools.train.budget import largest_batch, peak_an_image

    models = {kind: make_model(kind, mode, args.size) for kind in ("ours", "timm")}
    kept, peak, fitting = {}, {}, {}
    for kind, model in models.items():
        kept[kind] = bytes_an_image(model, args.size, dtype)
        peak[kind] = peak_an_image(
            lambda images, model=model: loss_of(model, args.size, dtype, images).backward(), peers.device()
        )
        fixed = BYTES_A_PARAMETER * sum(p.numel() for p in model.parameters())
        fitting[kind] = largest_batch(max(peak[kind], kept[kind]), fixed, args.budget * GIBI)
    grown = f"our process grows by {process_an_image(args, mode, dtype) / MEBI:.1f}; " if args.peak_batch else ""
    note = (
        f"kept {kept['ours'] / MEBI:.1f} MiB an image, timm {kept['timm'] / MEBI:.1f}; peak of a step "
        f"{peak['ours'] / MEBI:.1f}, timm {peak['timm'] / MEBI:.1f}; {grown}"
        f"into {args.budget:g} GiB fit {fitting['ours']} images, timm {fitting['timm']}"
    )
    ratio = kept["timm"] / kept["ours"]
    return Row(f"{dtype}, {mode}", None, ratio, ratio, ratio, note, BARS.get(mode) if dtype == "bf16" else None)


def make_model(kind: str, mode: str, size: str):
    """A model in one of `MODES`, nothing dropped; timm has no selective mode, so there it is timm's plain one."""
    options = MODES[mode] if kind == "ours" else {}
    model = peers.build(kind, size, 0.0, **options).to(peers.device()).train()
    if kind == "timm" and mode == "checkpoint":
        model.set_grad_checkpointing(True)
    return model


def bytes_an_image(model, size: str, dtype: str) -> int:
    """What one more image adds to the tensors that a forward pass keeps for its backward."""
    from tools.train.budget import kept_bytes

    one, two = (kept_bytes(model, lambda images=images: loss_of(model, size, dtype, images)) for images in (1, 2))
    return two - one


def loss_of(model, size: str, dtype: str, images: int):
    """The loss of a random batch."""
    import torch

    batch, targets = peers.random_batch(size, images)
    with peers.autocast(dtype):
        return torch.nn.functional.binary_cross_entropy_with_logits(model(batch), targets)


def process_an_image(args, mode: str, dtype: str) -> float:
    """By how much a training step's peak grows with every image, as the process sees it; each peak in a new one."""
    low, high = args.peak_batch, 2 * args.peak_batch
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(process_bytes, [(mode, args.size, dtype, batch) for batch in (low, high)], chunksize=1)
    return (peaks[1] - peaks[0]) / (high - low)


def process_bytes(mode: str, size: str, dtype: str, batch: int) -> int:
    """The most that this process, or on a GPU torch, has held after two training steps."""
    import torch

    step = peers.training_step(make_model("ours", mode, size), batch, size, dtype)
    step(), step()
    if peers.device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()  # getrusage's figure is that of the parent where that is higher
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
