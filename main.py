"""Trains a model on prepared leaf photos, or scores (--eval) or times (--throughput) one on the validation photos."""

import sys

from configs.checks import check_training
from configs.load import Loaded, differences, from_text, load
from tools import cli
from tools.errors import CheckpointError, DataError, ResourceError, UsageError

EPILOG = """
Settings come from the defaults, the BASE files, the file, --opts and the flags, the later ones winning; --print-config
shows each value with where it came from. Several GPUs: torchrun --nproc_per_node=N main.py ...
"""
# What may differ between a run and its continuation without changing a bit of the result.
HARMLESS = (
    "OUTPUT",
    "TAG",
    "SAVE_FREQ",
    "PRINT_FREQ",
    "MODEL.RESUME",
    "MODEL.PRETRAINED",
    "DATA.DATA_PATH",
    "DATA.ZIP_MODE",
    "DATA.CACHE_MODE",
    "DATA.PIN_MEMORY",
    "DATA.NUM_WORKERS",
    "TRAIN.AUTO_RESUME",
    "TRAIN.MAX_STEPS",
    "TRAIN.SAVE_EVERY_STEPS",
    "DIST.BACKEND",
    "DIST.TIMEOUT_SECONDS",
)


def parse(argv: list[str]):
    """The flags, and the config they lead to."""
    parser = cli.Parser(prog="main.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment to run, e.g. configs/sample.yaml")
    parser.add_argument("--opts", nargs="+", action="extend", metavar="KEY VALUE", help="set config keys")
    parser.add_argument("--eval", action="store_true", help="score --resume FILE on the validation photos and leave")
    parser.add_argument("--throughput", action="store_true", help="time forward passes and leave")
    parser.add_argument("--print-config", action="store_true", help="show every value with its source and leave")
    parser.add_argument("--overwrite", action="store_true", help="start the run of this tag anew, losing the old one")
    parser.add_argument(
        "--allow-change",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="resume although these config keys have changed",
    )
    cli.add_config_flags(parser)
    args = parser.parse_args(argv)
    loaded = load(args.cfg, args.opts, cli.overrides(args))
    if not (args.eval or args.throughput):
        check_training(loaded.config)
    return args, loaded


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv` and does what it says."""
    args, loaded = parse(argv)
    if args.print_config:
        print(loaded.describe())
        return 0

    from tools.allocator import keep_freed_memory
    from tools.distributed import choose_device, process_group, ranks_from_environment

    keep_freed_memory()
    ranks = ranks_from_environment()
    device = choose_device(ranks)
    dist = loaded.config.DIST
    with process_group(ranks, dist.BACKEND, device, dist.TIMEOUT_SECONDS):
        if args.eval:
            return evaluate_checkpoint(loaded.config, ranks, device)
        if args.throughput:
            return measure(loaded.config, device)
        return train(loaded, args, argv, ranks, device)


def train(loaded: Loaded, args, argv: list[str], ranks, device) -> int:
    """One run, from wherever its folder says it stands to its end."""
    import torch

    from data.datasets import describe
    from data.seeds import INIT, seed_of
    from models.build import build_model, head_name
    from models.weights import count_parameters, load_strictly
    from tools import checkpoint
    from tools.amp import choose_precision
    from tools.engine import Progress

    config = loaded.config
    # Everything that can be refused is refused before the first file is written.
    precision, notice = choose_precision(config.AMP.OPT_LEVEL, config.AMP.BACKEND, config.AMP.DTYPE, device)
    splits, preprocess, loaders = load_data(config, ranks, device)
    plan, schedule = make_plan(config, len(loaders[0].batch_sampler), ranks)
    torch.manual_seed(seed_of(config.SEED, INIT))
    torch.use_deterministic_algorithms(config.TRAIN.DETERMINISTIC)
    torch.backends.cudnn.benchmark = not config.TRAIN.DETERMINISTIC
    model = build_model(config.MODEL, config.DATA.IMG_SIZE, config.MODEL.NUM_CLASSES, config.TRAIN.USE_CHECKPOINT)
    meta = {
        "config": config.dump(),
        "classes": list(splits[0].classes),
        "preprocess": preprocess.to_dict(),
        "targets": config.DATA.TARGETS,
        "thresholds": [0.5] * config.MODEL.NUM_CLASSES,
        "data_digest": [split.digest() for split in splits],
        "micro_batch": config.DATA.BATCH_SIZE,
        "images_per_update": plan.images_per_update,
    }
    folder, resume = starting_point(config, args)
    stored = None
    if resume:
        stored = checkpoint.read_own(resume, checkpoint.RESUME_KEYS)
        check_unchanged(stored, meta, config, args.allow_change, resume)
    origin = f"weights of {resume}" if stored else start_weights(model, config, head_name(model))
    learner = make_learner(model, config, precision, head_name(model), ranks, device)
    progress = Progress()
    if stored:
        learner.restore(stored, load_strictly, str(resume))
        progress = Progress(stored["step"], stored["skipped"], list(stored["sums"]), stored["best"])
        if progress.step >= plan.total_steps:
            print(f"{resume} is the end of a finished run ({progress.step} steps): nothing left to do")
            return 0

    logger = open_folder(folder, loaded, argv, ranks, keep=bool(stored))
    for line in filter(None, (notice, *splits[0].notes, *splits[1].notes, *map(describe, splits))):
        logger.info(line)
    logger.debug(f"{model}\n{loaded.describe()}")
    flops = f", {model.flops() / 1e9:.2f} G multiply-adds an image" if hasattr(model, "flops") else ""
    logger.info(f"{config.MODEL.NAME}: {count_parameters(model) / 1e6:.2f} M parameters{flops}; {origin}")
    logger.info(
        f"{precision} on {device}, {ranks.world_size} rank(s); {plan.images_per_update} images an update, "
        f"{plan.updates} updates an epoch; peak learning rate {schedule.peak:.4g} = TRAIN.BASE_LR "
        f"{config.TRAIN.BASE_LR:g} x {plan.images_per_update} / 512"
    )
    if ranks.world_size > 1 and any("batchnorm" in type(m).__name__.lower() for m in model.modules()):
        logger.info("the model has batch norm, whose statistics depend on how a batch is cut into ranks")
    if stored:
        logger.info(f"resuming {resume} at step {progress.step} of {plan.total_steps}")
    make_run(config, folder, logger, ranks, device, plan, schedule, learner, progress, meta, loaders).fit()
    return 0


def evaluate_checkpoint(config, ranks, device) -> int:
    """Scores the checkpoint of --resume on the validation photos."""
    from pathlib import Path

    from data.build import batches_of, build_eval_loader, num_workers
    from data.datasets import scan_split
    from tools.amp import choose_precision
    from tools.assemble import load_predictor
    from tools.engine import evaluate
    from tools.losses import CRITERIA
    from tools.run import score_line

    if not config.MODEL.RESUME:
        raise UsageError("--eval needs the checkpoint to score: --resume FILE")
    predictor = load_predictor(Path(config.MODEL.RESUME), device)
    split = scan_split(config.DATA.DATA_PATH, "val", config.DATA.ZIP_MODE, predictor.classes)
    loader = build_eval_loader(
        split,
        predictor.preprocess,
        batch_size=config.DATA.BATCH_SIZE,
        workers=num_workers(config.DATA.NUM_WORKERS, ranks.world_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    precision, _ = choose_precision(config.AMP.OPT_LEVEL, "native", config.AMP.DTYPE, device)
    scores = evaluate(
        predictor.model,
        batches_of(loader),
        CRITERIA[predictor.targets],
        device,
        precision,
        num_classes=len(predictor.classes),
        targets=predictor.targets,
        thresholds=predictor.thresholds,
    )
    if ranks.first:
        print(f"{predictor.path}, step {predictor.step}")
        print(score_line(scores))
    return 0


def measure(config, device) -> int:
    """Times forward passes of the config's model on one batch of the config's size."""
    import torch

    from models.build import build_model
    from tools.amp import choose_precision
    from tools.engine import measure_throughput

    precision, _ = choose_precision(config.AMP.OPT_LEVEL, "native", config.AMP.DTYPE, device)
    model = build_model(config.MODEL, config.DATA.IMG_SIZE, config.MODEL.NUM_CLASSES).to(device)
    size = config.TEST.IMG_SIZE or config.DATA.IMG_SIZE
    images = torch.rand(config.DATA.BATCH_SIZE, 3, size, size, device=device)
    speed = measure_throughput(model, images, precision)
    print(
        f"batch_size {len(images)} throughput {speed['images_per_second']:.1f} images/s  a batch: p50 "
        f"{1e3 * speed['p50_seconds']:.1f} ms, p95 {1e3 * speed['p95_seconds']:.1f} ms  peak memory "
        f"{speed['peak_bytes'] / 2**20:.0f} MB  ({precision} on {device})"
    )
    return 0


def load_data(config, ranks, device):
    """(train and val splits, how photos are scored, train and val loaders)."""
    from data.build import build_eval_loader, build_preprocess, build_train_loader, num_workers
    from data.datasets import scan_split
    from models.build import normalization

    data = config.DATA
    train_split = scan_split(data.DATA_PATH, "train", data.ZIP_MODE)
    val_split = scan_split(data.DATA_PATH, "val", data.ZIP_MODE, train_split.classes)
    if len(train_split.classes) != config.MODEL.NUM_CLASSES:
        raise DataError(
            f"class mismatch: {train_split.where} has {len(train_split.classes)} class folders "
            f"({', '.join(train_split.classes[:8])}) and MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES}; "
            f"add --opts MODEL.NUM_CLASSES {len(train_split.classes)}, or mend the folders"
        )
    preprocess = build_preprocess(data, config.TEST, *normalization(config.MODEL))
    train_loader = build_train_loader(
        data,
        config.AUG,
        train_split,
        preprocess,
        seed=config.SEED,
        rank=ranks.rank,
        world_size=ranks.world_size,
        pin=device.type == "cuda",
    )
    val_loader = build_eval_loader(
        val_split,
        preprocess,
        batch_size=data.BATCH_SIZE,
        rank=ranks.rank,
        world_size=ranks.world_size,
        workers=num_workers(data.NUM_WORKERS, ranks.world_size),
    )
    return (train_split, val_split), preprocess, (train_loader, val_loader)


def make_plan(config, num_batches: int, ranks):
    """How the epochs are cut into updates, and the learning rate of each."""
    from tools.run import Plan
    from tools.schedules import build_schedule, scale_lr

    train = config.TRAIN
    if num_batches == 0:
        raise UsageError(
            f"the training photos do not fill one batch of DATA.BATCH_SIZE {config.DATA.BATCH_SIZE} on "
            f"{ranks.world_size} rank(s); lower --batch-size"
        )
    if num_batches < train.ACCUMULATION_STEPS:
        raise UsageError(
            f"TRAIN.ACCUMULATION_STEPS {train.ACCUMULATION_STEPS} is more than the {num_batches} batches of "
            "an epoch; lower --accumulation-steps"
        )
    plan = Plan(
        epochs=train.EPOCHS,
        num_batches=num_batches,
        accumulation=train.ACCUMULATION_STEPS,
        images_per_update=config.DATA.BATCH_SIZE * ranks.world_size * train.ACCUMULATION_STEPS,
        save_freq=config.SAVE_FREQ,
        save_every=train.SAVE_EVERY_STEPS,
        stop_after=train.MAX_STEPS,
    )
    base, warmup, lowest = (
        scale_lr(lr, plan.images_per_update) for lr in (train.BASE_LR, train.WARMUP_LR, train.MIN_LR)
    )
    schedule = build_schedule(
        train.LR_SCHEDULER.NAME,
        base_lr=base,
        warmup_lr=warmup,
        min_lr=lowest,
        warmup_steps=round(train.WARMUP_EPOCHS * plan.updates),
        total_steps=plan.total_steps,
        decay_steps=max(1, round(train.LR_SCHEDULER.DECAY_EPOCHS * plan.updates)),
        decay_rate=train.LR_SCHEDULER.DECAY_RATE,
    )
    return plan, schedule


def start_weights(model, config, head: str) -> str:
    """Puts the pretrained weights of the config into the model, and says where they came from."""
    from models.build import Hub, find_pretrained
    from models.weights import load_pretrained
    from tools import checkpoint

    source = find_pretrained(config.MODEL.PRETRAINED, config.MODEL.NAME)
    if source is None:
        return "fresh weights"
    content = source.state_dict() if isinstance(source, Hub) else checkpoint.read(source)
    return load_pretrained(model, content, str(getattr(source, "name", source)), head)


def make_learner(model, config, precision, head: str, ranks, device):
    """Model, optimizer, precision and moving average, wrapped for the ranks there are."""
    import torch
    from timm.utils import ModelEmaV3

    from models.build import layer_index, no_weight_decay
    from tools.optim import build_optimizer, freeze, parameter_groups
    from tools.run import Learner

    train, optimizer = config.TRAIN, config.TRAIN.OPTIMIZER
    model = model.to(device)
    freeze(model, train.FREEZE)
    groups = parameter_groups(
        model,
        weight_decay=train.WEIGHT_DECAY,
        no_decay=no_weight_decay(model),
        head=head,
        head_scale=train.HEAD_LR / train.BASE_LR if train.HEAD_LR else 1.0,
        layer_decay=train.LAYER_DECAY,
        layer_index=layer_index(model) if train.LAYER_DECAY != 1 else None,
    )
    optimizer = build_optimizer(
        groups, optimizer.NAME, lr=train.BASE_LR, eps=optimizer.EPS, betas=optimizer.BETAS, momentum=optimizer.MOMENTUM
    )
    model, optimizer = precision.prepare(model, optimizer)
    forward = model
    if ranks.world_size > 1:
        forward = torch.nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )
    ema = ModelEmaV3(model, decay=train.EMA_DECAY, use_warmup=True, warmup_power=2 / 3) if train.EMA_DECAY else None
    return Learner(model, forward, optimizer, precision, ema)


def starting_point(config, args):
    """(run folder, checkpoint to go on from or None). Raises UsageError when a run is there and may not be touched."""
    from pathlib import Path

    from tools.checkpoint import LAST

    folder = Path(config.OUTPUT) / config.MODEL.NAME / config.TAG
    data = Path(config.DATA.DATA_PATH).resolve()
    if data == folder.resolve() or data in folder.resolve().parents or folder.resolve() in data.parents:
        raise UsageError(f"--output {config.OUTPUT} and --data-path {config.DATA.DATA_PATH} lie within each other")
    last = folder / LAST
    if config.MODEL.RESUME:
        return folder, Path(config.MODEL.RESUME)
    if not last.exists() or args.overwrite:
        return folder, None
    if not config.TRAIN.AUTO_RESUME:
        raise UsageError(f"{folder} holds a run; name another with --tag, or lose it with --overwrite")
    return folder, last


def check_unchanged(stored: dict, meta: dict, config, allowed: list[str], path) -> None:
    """Raises when a checkpoint was made with another config, data set or batch than this run would use."""
    changed = differences(config, from_text(stored["config"], f"{path} (config)"), (*HARMLESS, *allowed))
    remedy = "start another run with --tag NAME, or lose this one with --overwrite"
    if changed:
        raise UsageError(
            f"{path} was made with another config: {', '.join(changed)}; {remedy}, or allow it with "
            f"--allow-change {' '.join(line.split()[0] for line in changed)}"
        )
    if stored["classes"] != meta["classes"]:
        raise CheckpointError(f"{path} has the classes {stored['classes']}, the data has {meta['classes']}")
    if stored["data_digest"] != meta["data_digest"]:
        raise CheckpointError(f"{path} was made with other photos or labels; {remedy}")
    if stored.get("images_per_update") != meta["images_per_update"]:
        raise CheckpointError(
            f"{path} was made with {stored.get('images_per_update')} images an update, and this would "
            f"be {meta['images_per_update']}; use as many ranks x batch size as before"
        )


def open_folder(folder, loaded: Loaded, argv: list[str], ranks, keep: bool):
    """Makes the run folder (emptied of an older run unless `keep`) and returns the logger that writes into it."""
    from tools import checkpoint
    from tools.logger import create_logger
    from tools.run import record_start

    if ranks.first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not keep:
                for name in (checkpoint.LAST, checkpoint.BEST, "metrics.csv", "curves.png", "log.txt"):
                    (folder / name).unlink(missing_ok=True)
            (folder / "config.yaml").write_text(loaded.config.dump())
            record_start(folder, argv)
            return create_logger(folder / "log.txt")
        except OSError as error:
            raise ResourceError(f"run folder {folder} cannot be written: {error.strerror}") from None
    return create_logger(rank=ranks.rank)


def make_run(config, folder, logger, ranks, device, plan, schedule, learner, progress, meta, loaders):
    """Everything put together."""
    from functools import partial

    from data.build import batches_of, build_mixer, resume_batches
    from tools.assemble import batch_draws
    from tools.losses import CRITERIA
    from tools.run import Run

    targets = config.DATA.TARGETS
    automatic = {"single": "accuracy", "multi": "macro_f1"}[targets]
    draw = batch_draws(
        build_mixer(config.AUG),
        learner.module,
        img_size=config.DATA.IMG_SIZE,
        batch_size=config.DATA.BATCH_SIZE,
        accumulation=plan.accumulation,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.SEED,
    )
    return Run(
        folder=folder,
        logger=logger,
        ranks=ranks,
        device=device,
        plan=plan,
        schedule=schedule,
        learner=learner,
        progress=progress,
        meta=meta,
        targets=targets,
        num_classes=config.MODEL.NUM_CLASSES,
        select=automatic if config.TRAIN.SELECT == "auto" else config.TRAIN.SELECT,
        train_criterion=partial(CRITERIA[targets], smoothing=config.MODEL.LABEL_SMOOTHING),
        val_criterion=CRITERIA[targets],
        train_batches=partial(resume_batches, loaders[0]),
        val_batches=partial(batches_of, loaders[1]),
        draw=draw,
        clip_grad=config.TRAIN.CLIP_GRAD,
        print_freq=config.PRINT_FREQ,
    )


if __name__ == "__main__":
    sys.exit(main())
