"""A training step and a forward pass of Swin-T: ours, timm's and torchvision's; and what the training loop adds."""

from collections.abc import Callable, Iterator

from tools.bench import peers
from tools.bench.rounds import PEAK, Row, alternate, compare, interleave, matrix_multiply

# (mode, whether each has its own process, ours with the allocator setting) -> what our ratio to timm is to be
BARS = {("train", False): 1.08, ("eval", False): 1.02, ("train", True): 1.15, ("eval", True): 1.05}
LOOP_BAR = 0.98  # bare step by loop
LOOP_UPDATES = 3
WARM_UP = 4  # rounds until a process has all the memory that its steps take


def add_flags(parser) -> None:
    """This ruler's own flags."""
    peers.add_size_flag(parser)
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 16], metavar="N", help="images (default 8 16)")
    parser.add_argument("--dtype", choices=peers.DTYPES, default="fp32", help="autocast of the step (default fp32)")
    parser.add_argument("--compile", action="store_true", help="torch.compile all models")
    parser.add_argument(
        "--only", nargs="+", choices=["train", "eval", "loop"], default=["train", "eval", "loop"], help="some rows only"
    )


def measure(args) -> list[Row]:
    """All rows, for every batch size. The loop comes last, for it runs under the program's allocator setting."""
    rows: list[Row] = []
    for batch in args.batch:
        for mode in ("train", "eval"):
            if mode in args.only:
                rows += rows_of(args, mode, batch)
    for batch in args.batch if "loop" in args.only else ():
        rows += loop_rows(args, batch)
    return rows


def rows_of(args, mode: str, batch: int) -> Iterator[Row]:
    """One mode and batch: in one process, then in a process each."""
    how = (mode, batch, args.size, args.dtype, args.compile, args.threads)
    for apart in (False, True):
        where = "own processes" if apart else "one process"
        names = {kind: f"{mode}, batch {batch}, {where}: {kind}" for kind in peers.KINDS}
        if apart:
            ways = {name: (make_way, kind, *how, kind == "ours") for kind, name in names.items()}
            taken = alternate({**ways, PEAK: (matrix_multiply, args.threads)}, args.rounds, WARM_UP)
        else:
            ways = {name: make_way(kind, *how) for kind, name in names.items()}
            taken = interleave({**ways, PEAK: matrix_multiply(args.threads)}, args.rounds, WARM_UP)
        yield from compare(taken, names["timm"], {names["ours"]: BARS[mode, apart]})


def make_way(
    kind: str, mode: str, batch: int, size: str, dtype: str, compiled: bool, threads: int, keep_memory: bool = False
) -> Callable[[], None]:
    """A model of one kind and its step; also what a process of its own starts with."""
    import torch

    from tools.runtime.memory import keep_freed_memory

    if keep_memory:
        keep_freed_memory()
    torch.set_num_threads(threads)
    model = peers.build(kind, size).to(peers.device())
    if compiled:
        model.compile()
    make = peers.training_step if mode == "train" else peers.evaluation
    return make(model, batch, size, dtype)


def loop_rows(args, batch: int) -> list[Row]:
    """What `train_one_epoch` takes beside the same model's bare forward, backward and step."""
    import torch

    from data.loading.mixup import Mixer
    from tools.runtime.memory import keep_freed_memory
    from tools.train.draws import batch_draws

    keep_freed_memory()
    model = peers.build("ours", args.size).to(peers.device())
    draw = batch_draws(
        Mixer(mixup=0.0, cutmix=0.0),
        model,
        img_size=peers.SIZES[args.size]["img_size"],
        batch_size=batch,
        accumulation=1,
        rank=0,
        world_size=1,
        seed=0,
    )
    images, targets = peers.random_batch(args.size, batch)
    criterion = torch.nn.functional.binary_cross_entropy_with_logits
    optimizer = peers.adamw(model)
    masks = [draw(step, 0).keep for step in range(LOOP_UPDATES)]
    model.train()

    def bare() -> None:
        for keep in masks:
            criterion(model(images, keep), targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    bare_name, loop_name = (f"train, batch {batch}, {LOOP_UPDATES} updates: {what}" for what in ("bare", "our loop"))
    ways = {
        bare_name: bare,
        loop_name: lambda: run_loop(model, [(images, targets)] * LOOP_UPDATES, criterion, optimizer, draw),
    }
    taken = interleave(ways, args.rounds, WARM_UP)
    return compare(taken, bare_name, {loop_name: LOOP_BAR}, {loop_name: "clipping and the finite check included"})


def run_loop(model, batches: list, criterion: Callable, optimizer, draw: Callable) -> None:
    """One epoch of `batches` by the program's own loop."""
    from tools.runtime.precision import NativePrecision
    from tools.train.loop import Progress, train_one_epoch
    from tools.train.step import StepContext

    device = peers.device()
    precision = NativePrecision(device.type, None)
    context = StepContext(model, criterion, optimizer, precision, device, draw, clip_grad=5.0)
    progress = Progress(micro_batch=len(batches[0][0]))
    schedule = lambda _step: 1e-5  # noqa: E731
    for _ in train_one_epoch(context, batches, progress, num_batches=len(batches), accumulation=1, schedule=schedule):
        pass
