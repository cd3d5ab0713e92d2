"""Benchmark: training steps and forward passes of Swin-T, ours and timm's; the training loop's cost."""

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from data.loading.mixup import Mixer
from tools.bench import peers
from tools.bench.rounds import Row, Seconds, alternate, compare, interleave
from tools.runtime.memory import keep_freed_memory
from tools.runtime.precision import DTYPES, ApexPrecision, NativePrecision, Precision
from tools.train.draws import batch_draws
from tools.train.loop import Progress, train_one_epoch
from tools.train.optim import build_optimizer
from tools.train.step import StepContext

NUM_UPDATES = 3
WARM_UP = 4  # rounds until a process has allocated all the memory of a step


@dataclass(frozen=True)
class Setup:
    """What a step computes.

    Attributes:
        kind, size: see `peers.build_model`.
        mode: train, or eval for a forward pass.
        precision: fp32, bf16, fp16, or O1 or O2 of apex.
        compiler: backend of torch.compile; empty for none.
        memory: how our model saves memory, options of its constructor.
    """

    kind: str
    size: str
    batch_size: int
    mode: str = "train"
    precision: str = "fp32"
    compiler: str = ""
    channels_last: bool = False
    memory: tuple[str, ...] = ()


def measure(args) -> list[Row]:
    """All rows. The loop comes last, because it turns on the program's allocator setting."""
    rows: list[Row] = []
    for batch_size, mode, apart in itertools.product(args.batch, ("train", "eval"), (False, True)):
        name = f"{mode}, batch {batch_size}, {'own processes' if apart else 'one process'}"
        setup = partial(Setup, size=args.size, batch_size=batch_size, mode=mode, precision=args.dtype)
        rows += compare(time_steps({f"{name}: {kind}": setup(kind) for kind in ("timm", "ours")}, args.rounds, apart))
    for batch_size in args.batch:
        keep_freed_memory()
        bare, loop = make_loop(args.size, batch_size)
        name = f"train, batch {batch_size}, {NUM_UPDATES} updates"
        taken = interleave({f"{name}: bare": bare, f"{name}: our loop": loop}, args.rounds, WARM_UP)
        rows += compare(taken, {f"{name}: our loop": "clipping and the finite check included"})
    return rows


def time_steps(setups: dict[str, Setup], num_rounds: int, apart: bool = False) -> Seconds:
    """Times a step of each setup: in this process, or with `apart`, each in its own process."""
    if apart:
        return alternate({name: (make_step, setup, True) for name, setup in setups.items()}, num_rounds, WARM_UP)
    return interleave({name: make_step(setup) for name, setup in setups.items()}, num_rounds, WARM_UP)


def make_step(setup: Setup, own_process: bool = False) -> Callable[[], None]:
    """What is timed: a training step or a forward pass. In its own process, ours has its allocator setting."""
    if own_process and setup.kind == "ours":
        keep_freed_memory()
    model = peers.build_model(setup.kind, setup.size, **dict.fromkeys(setup.memory, True)).train(setup.mode == "train")
    images, targets = peers.random_batch(setup.size, setup.batch_size)
    if setup.channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    precision = make_precision(setup.precision)
    model, optimizer = precision.prepare(model, build_adamw(model))
    draw = getattr(model, "draw_drop_path", None)  # ours takes its stochastic depth, drawn beforehand
    if setup.compiler:
        model.compile(backend=setup.compiler)

    def train() -> None:
        with precision.autocast():
            logits = model(images, draw(setup.batch_size)) if draw else model(images)
            loss = binary_cross_entropy_with_logits(logits, targets)
        precision.backward(loss, optimizer)
        precision.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def evaluate() -> None:
        with torch.no_grad(), precision.autocast():
            model(images)

    return train if setup.mode == "train" else evaluate


def make_precision(name: str) -> Precision:
    """The precision of a `Setup`."""
    return ApexPrecision(name) if name in ("O1", "O2") else NativePrecision(peers.DEVICE.type, DTYPES.get(name))


def make_loop(size: str, batch_size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """`NUM_UPDATES` of forward, backward and step alone, and the same by `train_one_epoch`; both in fp32."""
    model = peers.build_model("ours", size).train()
    images, targets = peers.random_batch(size, batch_size)
    sizes = {"batch_size": batch_size, "accumulation_steps": 1, "rank": 0, "world_size": 1, "seed": 0}
    draw = batch_draws(Mixer(mixup=0.0, cutmix=0.0), model, img_size=images.shape[-1], **sizes)
    masks = [draw(step, 0).keep for step in range(NUM_UPDATES)]
    optimizer, precision, schedule = build_adamw(model), make_precision("fp32"), lambda _step: 1e-5
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

    return step_bare, run_loop


def build_adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    """The program's AdamW over all parameters."""
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0, "names": []}]
    return build_optimizer(groups, "adamw", lr=1e-5, eps=1e-8, betas=(0.9, 0.999), momentum=0.9)
