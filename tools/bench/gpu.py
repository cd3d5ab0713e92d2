"""Benchmark: speed, memory and exact resume on a GPU, with drawn leaves. `--size toy` runs the same code on a CPU.

A part that fails becomes a row, and the other parts still run: this GPU model may be untested.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch

from tools.bench import loader, peers
from tools.bench.commands import prepare_sample, run
from tools.bench.memory import MODES, find_largest, fits, limit_memory
from tools.bench.model import NUM_UPDATES, Setup, make_loop, make_step, time_steps
from tools.bench.rounds import FAILED, Row, compare, interleave, make_row
from tools.checkpoint import store
from tools.runtime.precision import choose_precision

Part = tuple[str, str, Callable[[str], list[Row]]]  # name, why it cannot run here or "", name -> rows
# Swin-T and the toy model both need more than these bytes for this batch of images of this side.
RECOVERY_BYTES, RECOVERY_BATCH, RECOVERY_SIDE = 2**30, 64, 224
LIMITED_MAIN = (
    f"import sys; from tools.bench.memory import limit_memory; limit_memory({RECOVERY_BYTES}); "
    "import main; sys.exit(main.main(sys.argv[1:]))"
)


def measure(args) -> list[Row]:
    """The rows of all parts. A part that would begin after `args.minutes` is left out, and its row says so."""
    started, rows = time.monotonic(), []
    torch.backends.cudnn.benchmark = True  # as in main.py
    if peers.DEVICE.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as in main.py, and for timm too; on a CPU it would mean bf16
    args.dataset = prepare_sample(args.folder, args.photos, 16, 16)
    for name, lacks, measure_part in list_parts(args):
        seconds = time.monotonic() - started
        print(f"{seconds:4.0f} s  {name}", file=sys.stderr, flush=True)
        if not lacks and seconds > 60 * args.minutes:
            lacks = f"{args.minutes:g} minutes were over; raise --minutes"
        try:
            rows += [make_row(name, note=f"not measured: {lacks}")] if lacks else measure_part(name)
        except Exception as error:  # of any library; the table shows it
            reason = (str(error).strip().splitlines() or [""])[0]
            rows.append(make_row(name, note=f"{FAILED}: {type(error).__name__}: {reason}"))
    return rows


def list_parts(args) -> Iterator[Part]:
    """All parts; those that compile take minutes and come last."""
    cuda, num_gpus = peers.DEVICE.type == "cuda", torch.cuda.device_count()
    no_gpu, no_apex = "" if cuda else "no GPU", "" if find_spec("apex") else "NVIDIA apex is not installed"
    precision, _ = choose_precision("auto", "native", "auto", peers.DEVICE)  # as main.py does
    amp = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[precision.dtype]
    ours = Setup("ours", args.size, args.batch, precision=amp)

    def steps(label: str, setups: dict[str, Setup], lacks: str = "", apart: bool = False) -> Part:
        return f"training step, {label}", lacks, partial(measure_steps, args, setups, apart)

    def against_timm(dtype: str, compiler: str = "") -> dict[str, Setup]:
        return {kind: replace(ours, kind=kind, precision=dtype, compiler=compiler) for kind in ("timm", "ours")}

    for dtype in args.dtype:
        yield steps(dtype, against_timm(dtype))
    for kind in (peers.CONVNET, "ours"):
        layouts = {f"channels_last {on}": replace(ours, kind=kind, channels_last=on) for on in (False, True)}
        yield steps(f"{amp}, {kind}", layouts)
    levels = {level: replace(ours, precision=level) for level in ("fp16", "O1", "O2")}
    yield steps("apex", levels, no_gpu or no_apex, apart=True)
    yield f"loader, {amp}", "", partial(measure_loader, args, ours)
    yield "host synchronisations", no_gpu, partial(count_synchronisations, args)
    for mode, options in MODES.items():
        search = partial(measure_largest, args, replace(ours, memory=options))
        yield f"largest batch in {args.budget:g} GiB, {amp}, {mode}", no_gpu, search
    yield "out of memory", "", partial(measure_recovery, args)
    for ranks in args.ranks:
        too_few = f"only {num_gpus} GPU" if cuda and num_gpus < ranks else ""
        yield f"deterministic resume, {ranks} rank(s)", too_few, partial(measure_resume, args, ranks)
    for dtype in args.dtype:
        yield steps(f"{dtype}, compiled", against_timm(dtype, args.compile))


def measure_steps(args, setups: dict[str, Setup], apart: bool, name: str) -> list[Row]:
    """Times training steps; the first setup is the peer."""
    taken = time_steps({f"{name}: {each}": setup for each, setup in setups.items()}, args.rounds, apart)
    return compare(taken, num_photos=args.batch)


def measure_loader(args, setup: Setup, name: str) -> list[Row]:
    """Seconds per image, of a training step and of our loader; a ratio above 1 means that the loader keeps up."""
    opts = [*peers.config_words(args.size), "DATA.BATCH_SIZE", str(args.batch)]
    step, num_photos = f"{name}: the training step", args.photos // args.batch * args.batch
    calls: dict[str, Callable] = {step: make_step(setup)}
    for mode, setting in loader.MODES.items():
        calls[f"{name}: {mode}"] = loader.make_epoch(args.dataset, [*opts, *setting])
    taken = interleave(calls, args.rounds)
    per_image = {each: [s / (args.batch if each == step else num_photos) for s in taken[each]] for each in taken}
    return compare(per_image, num_photos=1)


def count_synchronisations(args, name: str) -> list[Row]:
    """How often an update of our training loop waits for the GPU."""
    _, run_loop = make_loop(args.size, args.batch)
    run_loop()  # the first updates allocate
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run_loop()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    count = sum("synchronizing" in str(warning.message) for warning in caught)
    return [make_row(name, note=f"{count / NUM_UPDATES:g} per update")]


def measure_largest(args, setup: Setup, name: str) -> list[Row]:
    """The largest batch whose training steps fit into `args.budget` GiB of GPU memory."""
    limit_memory(args.budget * 2**30)
    try:
        largest = find_largest(lambda num_images: fits(replace(setup, batch_size=num_images)))
    finally:
        limit_memory(float("inf"))
    return [make_row(name, note=f"{largest} images")]


def measure_recovery(args, name: str) -> list[Row]:
    """A run whose batch does not fit into its memory: it must do its update with a smaller micro-batch."""
    opts = ("DATA.IMG_SIZE", RECOVERY_SIDE, "DATA.NUM_WORKERS", 0, "TRAIN.MAX_STEPS", 1)
    seconds, content = train(args, "recovery", RECOVERY_BATCH, *opts, launcher=("-c", LIMITED_MAIN))
    step, micro_batch = content["step"], content["micro_batch"]
    note = f"batch {RECOVERY_BATCH} in {RECOVERY_BYTES / 2**30:g} GiB: {step} update with micro-batch {micro_batch}"
    return [make_row(name, [seconds], note=note if micro_batch < RECOVERY_BATCH else f"{FAILED}: {note}")]


def measure_resume(args, ranks: int, name: str) -> list[Row]:
    """Whether a run of three updates, stopped after its first and resumed, is bit-identical to an uninterrupted one."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}") if ranks > 1 else ()
    results = []
    for folder, num_updates in (("straight", 3), ("stopped", 1), ("stopped", 3)):
        opts = ("TRAIN.DETERMINISTIC", True, "TRAIN.MAX_STEPS", num_updates)
        results.append(train(args, f"{folder}{ranks}", args.batch, *opts, launcher=(*torchrun, "main.py")))
    seconds, straight = results[0]
    one, other = (dict(store.named_tensors(content)) for content in (straight, results[2][1]))
    equal = [each for each in one if each in other and one[each].equal(other[each])]
    note = f"{len(equal)} of {len(one)} tensors of last.pth are bit-identical"
    return [make_row(name, [seconds], note=note if len(equal) == len(one) == len(other) else f"{FAILED}: {note}")]


def train(args, folder: str, batch_size: int, *opts: object, launcher: tuple[str, ...]) -> tuple[float, dict]:
    """Runs main.py with `opts`; returns its seconds and the content of its last.pth."""
    output = args.folder / folder
    flags = ["--cfg", args.cfg, "--data-path", args.dataset, "--output", output, "--batch-size", batch_size]
    model = ["--opts", "MODEL.PRETRAINED", "none", *peers.config_words(args.size)]
    seconds = run(*launcher, *flags, *model, *opts)
    (last,) = output.glob(f"*/*/{store.LAST}")
    return seconds, store.read(last)
