"""Trains a model on prepared leaf photos, or scores (--eval) or times (--throughput) one on the validation photos."""

import contextlib
import signal

from configs.checks import check_training
from configs.flags import add_config_flags, overrides
from configs.load import Loaded, load
from tools.base import cli
from tools.base.errors import UsageError, UserError, nearest
from tools.commands import hint_config_key

EPILOG = """
Settings come from the defaults, the BASE files, the file, --opts and the flags, the later ones winning; --print-config
shows each value with where it came from. Several GPUs: torchrun --nproc_per_node=N main.py ...
"""


def parse(argv: list[str]):
    """The flags, and the config they lead to."""
    parser = cli.Parser(hint=hint_config_key, prog="main.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment to run, e.g. configs/sample.yaml")
    parser.add_argument("--opts", nargs="+", action="extend", metavar="KEY VALUE", help="set config keys")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--eval", action="store_true", help="score --resume FILE on the validation photos, then exit")
    modes.add_argument("--throughput", action="store_true", help="time forward passes, then exit")
    modes.add_argument("--check", action="store_true", help="try two updates and say what a run would do, then exit")
    parser.add_argument("--print-config", action="store_true", help="show every value with its source, then exit")
    parser.add_argument("--overwrite", action="store_true", help="replace the run of this tag with a new one")
    parser.add_argument(
        "--allow-change",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="resume although these config keys have changed",
    )
    add_config_flags(parser)
    args = parser.parse_args(argv)
    loaded = load(args.cfg, args.opts, overrides(args))
    if loaded.sources["MODEL.RESUME"] == "--resume" and loaded.sources["MODEL.PRETRAINED"] == "--pretrained":
        raise UsageError("--resume continues a run, --pretrained starts one; give one of them")
    for key in args.allow_change:
        if key not in loaded.sources:
            raise UsageError(f"--allow-change {key}: is not a config key{nearest(key, loaded.sources)}")
    if not (args.eval or args.throughput):
        check_training(loaded.config)
    return args, loaded


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv` and trains, checks, scores or times."""
    args, loaded = parse(argv)
    if args.print_config:
        print(resolve(loaded).describe())
        return 0

    if args.check:
        from tools.runtime.environment import check_packages

        check_packages()  # before importing torch, which may be missing

    from tools.base.processes import die_with_parent
    from tools.runtime.distributed import choose_device, process_group, ranks_from_environment
    from tools.runtime.memory import keep_freed_memory
    from tools.train.setup import launch

    keep_freed_memory()
    ranks = ranks_from_environment()
    if ranks.world_size > 1:  # a plain process may outlive its shell (nohup); a rank without its launcher would hang
        die_with_parent(signal.SIGTERM)
    device = choose_device(ranks, loaded.config.DEVICE)
    dist = loaded.config.DIST
    with process_group(ranks, dist.BACKEND, device, dist.TIMEOUT_SECONDS):
        if args.check:
            from tools.train.preflight import preflight

            return preflight(loaded, ranks, device, overwrite=args.overwrite, allowed=args.allow_change)
        if args.eval:
            return evaluate(loaded.config, ranks, device)
        if args.throughput:
            return measure(loaded.config, device)
        return launch(loaded, argv, ranks, device, overwrite=args.overwrite, allowed=args.allow_change)


def resolve(loaded: Loaded) -> Loaded:
    """The config of a run on its photos; unchanged where they cannot be listed or do not fit it."""
    from data.loading.split import scan_split

    data = loaded.config.DATA
    with contextlib.suppress(UserError):
        return loaded.resolve(scan_split(data.DATA_PATH, "train", data.ZIP_MODE, follow=data.FOLLOW_LINKS))
    return loaded


def evaluate(config, ranks, device) -> int:
    """Scores the checkpoint of --resume on the validation photos, at thresholds of 0.5, as training does."""
    from pathlib import Path

    from tools.evaluate.predictor import load_predictor, predict_split
    from tools.train.data import validation_split
    from tools.train.run import score_line, validation_scores

    if not config.MODEL.RESUME:
        raise UsageError("--eval needs the checkpoint to score: --resume FILE")
    predictor = load_predictor([Path(config.MODEL.RESUME)], device, tta="none")
    split = validation_split(config, predictor.label_set)
    logits, truth = predict_split(predictor, split, config.DATA, config.AMP, ranks, device)
    if ranks.first:
        member = predictor.members[0]
        print(f"{member.path}, step {member.step}")
        print(score_line(validation_scores(predictor.rule.unfit(), logits, truth)))
    return 0


def measure(config, device) -> int:
    """Times forward passes of the config's model on one batch of the config's size."""
    import torch

    from models.build import build_model
    from tools.evaluate.inference import measure_throughput
    from tools.runtime.memory import describe_memory, peak_memory
    from tools.runtime.precision import choose_precision

    precision, _ = choose_precision(config.AMP.OPT_LEVEL, "native", config.AMP.DTYPE, device)
    size = config.TEST.IMG_SIZE or config.DATA.IMG_SIZE
    num_classes = config.MODEL.NUM_CLASSES or 6  # as in the course; the number hardly changes the time
    model = build_model(config.MODEL, config.DATA.IMG_SIZE, num_classes, test_size=size).to(device)
    images = torch.rand(config.DATA.BATCH_SIZE, 3, size, size, device=device)
    speed = measure_throughput(model, images, precision)
    print(
        f"batch_size {len(images)} throughput {speed['images_per_second']:.1f} images/s  "
        f"latency per batch: p50 {1e3 * speed['p50_seconds']:.1f} ms, p95 {1e3 * speed['p95_seconds']:.1f} ms  "
        f"peak memory {describe_memory(peak_memory(device))}  ({precision} on {device})"
    )
    return 0
