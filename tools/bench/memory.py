"""Activations kept for backward, counted in bytes; the process's own peak beside them; the largest batch that fits."""

import multiprocessing
import resource

from tools.bench import peers
from tools.bench.rounds import Row

MODES = {"plain": {}, "lean": {"lean": True}, "checkpoint": {"use_checkpoint": True}}
# What ours may take of timm's bytes, as the ratio of timm's by ours; at bf16, which is what GPUs train in.
BARS = {"lean": 1 / 0.75, "checkpoint": 1.0}
BYTES_A_PARAMETER = 16  # fp32 weight, gradient and AdamW's two moments
MEBI, GIBI = 2**20, 2**30


def add_flags(parser) -> None:
    """This ruler's own flags."""
    peers.add_size_flag(parser)
    parser.add_argument("--budget", type=float, default=8.0, metavar="GIB", help="the card to fill (default 8)")
    parser.add_argument("--peak-batch", type=int, default=8, metavar="N", help="images of the peak's check (default 8)")


def measure(args) -> list[Row]:
    """For fp32 and bf16 autocast, each mode of ours beside timm's same mode (lean: timm's plain)."""
    from tools.budget import largest_batch

    rows = []
    for dtype in ("fp32", "bf16"):
        for mode in MODES:
            model = make_model("ours", mode, args.size)
            theirs = bytes_an_image(make_model("timm", mode, args.size), args.size, dtype)
            ours = bytes_an_image(model, args.size, dtype)
            fixed = BYTES_A_PARAMETER * sum(p.numel() for p in model.parameters())
            most = largest_batch(ours, fixed, args.budget * GIBI)
            peak = peak_an_image(args, mode, dtype)
            note = (
                f"{ours / MEBI:.1f} MiB an image, timm's {theirs / MEBI:.1f}; the process grows by {peak / MEBI:.1f}; "
                f"{most} images fit into {args.budget:g} GiB"
            )
            bar = BARS.get(mode) if dtype == "bf16" else None
            rows.append(
                Row(f"{dtype}, {mode}", ratio=theirs / ours, low=theirs / ours, high=theirs / ours, note=note, bar=bar)
            )
    return rows


def make_model(kind: str, mode: str, size: str):
    """A model in one of `MODES`, nothing dropped; timm has no lean mode, so there it is timm's plain one."""
    if kind == "ours":
        return peers.build("ours", size, 0.0, **MODES[mode])
    model = peers.build(kind, size, 0.0)
    if mode == "checkpoint":
        model.set_grad_checkpointing(True)
    return model


def bytes_an_image(model, size: str, dtype: str) -> int:
    """What one more image adds to the tensors that a forward pass keeps for its backward.

    Every storage counts once, whole, however many views of it are kept; the parameters' own do not count.
    """
    model = model.to(peers.device()).train()
    return kept_bytes(model, size, dtype, 2) - kept_bytes(model, size, dtype, 1)


def kept_bytes(model, size: str, dtype: str, batch: int) -> int:
    """Bytes of all storages that the graph of one forward pass keeps."""
    import torch

    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = {}  # identity of a storage -> the storage itself, held so that nobody else gets it

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    images, targets = peers.random_batch(size, batch)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), peers.autocast(dtype):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images), targets)
    del loss
    return sum(storage.nbytes() for identity, storage in kept.items() if identity not in own)


def peak_an_image(args, mode: str, dtype: str) -> float:
    """By how much more a training step's peak grows with every image; each peak in a new process."""
    low, high = args.peak_batch, 2 * args.peak_batch
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak_bytes, [(mode, args.size, dtype, batch) for batch in (low, high)], chunksize=1)
    return (peaks[1] - peaks[0]) / (high - low)


def peak_bytes(mode: str, size: str, dtype: str, batch: int) -> int:
    """The most that this process, or on a GPU torch, has held after two training steps."""
    import torch

    model = make_model("ours", mode, size).to(peers.device())
    step = peers.training_step(model, batch, size, dtype)
    step(), step()
    if peers.device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
