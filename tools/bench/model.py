"""Benchmark: training steps and forward passes of Swin-T, ours, timm's and torchvision's; the training loop's cost."""

import itertools
from collections import deque
from collections.abc import Callable

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from data.loading.mixup import Mixer
from tools.bench import peers
from tools.bench.rounds import Row, alternate, compare, interleave
from tools.runtime.memory import keep_freed_memory
from tools.runtime.precision import DTYPES, NativePrecision
from tools.train.draws import batch_draws
from tools.train.loop import Progress, train_one_epoch
from tools.train.optim import build_optimizer
from tools.train.step import StepContext

# (mode, one process each, where ours has its allocator setting) -> the ratio we want to timm
BARS = {("train", False): 1.08, ("eval", False): 1.02, ("train", True): 1.15, ("eval", True): 1.05}
LOOP_BAR = 0.98  # time of the bare steps by that of the loop
NUM_UPDATES = 3
WARM_UP = 4  # rounds until a process has all the memory that its steps take


def measure(args) -> list[Row]:
    """All rows. The loop comes last, for it turns on the program's allocator setting."""
    rows: list[Row] = []
    for batch_size, mode, apart in itertools.product(args.batch, ("train", "eval"), (False, True)):
        if mode in args.only:
            rows += measure_steps(args, mode, batch_size, apart)
    for batch_size in args.batch if "loop" in args.only else ():
        rows += measure_loop(args, batch_size)
    return rows


def measure_steps(args, mode: str, batch_size: int, apart: bool) -> list[Row]:
    """The rows of one mode and batch size, in this process or in one process each."""
    name = f"{mode}, batch {batch_size}, {'own processes' if apart else 'one process'}"
    makers = {f"{name}: {kind}": (make_step, args, kind, mode, batch_size, apart) for kind in peers.KINDS}
    if apart:
        taken = alternate(makers, args.rounds, WARM_UP)
    else:
        steps = {each: maker(*arguments) for each, (maker, *arguments) in makers.items()}
        taken = interleave(steps, args.rounds, WARM_UP)
    return compare(taken, {f"{name}: ours": BARS[mode, apart]})


def make_step(args, kind: str, mode: str, batch_size: int, apart: bool) -> Callable[[], None]:
    """What is timed: a training step or a forward pass; `apart` is whether the calling process is for it alone."""
    if apart and kind == "ours":
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    model = peers.build_swin(kind, args.size).train(mode == "train")
    if args.compile:
        model.compile()
    optimizer, precision = build_adamw(model), NativePrecision(peers.DEVICE.type, DTYPES.get(args.dtype))
    images, targets = peers.random_batch(args.size, batch_size)
    draw = getattr(model, "draw_drop_path", None)  # ours takes its stochastic depth, drawn beforehand

    def train() -> None:
        with precision.autocast():
            logits = model(images, draw(batch_size)) if draw else model(images)
            loss = binary_cross_entropy_with_logits(logits, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def evaluate() -> None:
        with torch.no_grad(), precision.autocast():
            model(images)

    return train if mode == "train" else evaluate


def measure_loop(args, batch_size: int) -> list[Row]:
    """What `train_one_epoch` takes beside the same model's bare forward, backward and step."""
    keep_freed_memory()
    model = peers.build_swin("ours", args.size).train()
    images, targets = peers.random_batch(args.size, batch_size)
    sizes = {"batch_size": batch_size, "accumulation_steps": 1, "rank": 0, "world_size": 1, "seed": 0}
    draw = batch_draws(Mixer(mixup=0.0, cutmix=0.0), model, img_size=images.shape[-1], **sizes)
    masks = [draw(step, 0).keep for step in range(NUM_UPDATES)]
    optimizer, precision, schedule = build_adamw(model), NativePrecision(peers.DEVICE.type, None), lambda _step: 1e-5
    loss_of = binary_cross_entropy_with_logits
    context = StepContext(model, loss_of, optimizer, precision, peers.DEVICE, draw, schedule, batch_size, clip_grad=5.0)

    def step_bare() -> None:
        for keep in masks:
            loss_of(model(images, keep), targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def run_loop() -> None:
        batches = [(images, targets)] * NUM_UPDATES
        deque(train_one_epoch(context, batches, Progress(micro_batch=batch_size), NUM_UPDATES, 1), maxlen=0)

    bare, loop = (f"train, batch {batch_size}, {NUM_UPDATES} updates: {what}" for what in ("bare", "our loop"))
    taken = interleave({bare: step_bare, loop: run_loop}, args.rounds, WARM_UP)
    return compare(taken, {loop: LOOP_BAR}, {loop: "clipping and the finite check included"})


def build_adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    """The program's AdamW over all parameters."""
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0, "names": []}]
    return build_optimizer(groups, "adamw", lr=1e-5, eps=1e-8, betas=(0.9, 0.999), momentum=0.9)
