"""What a value may be: ranges and choices key by key, then the combinations that cannot work.

Only what can be known without torch, the model or the data is checked here, so that a mistake is answered at once.
"""

import math
import re
from collections.abc import Callable

from tools.base.errors import UsageError, nearest


def _between(low: float, high: float) -> tuple[Callable, str]:
    """A rule for one number. Every number has an upper bound: far beyond it floats overflow where nobody expects it."""
    return lambda value: low <= value <= high, f"between {low:,} and {high:,}"


def _sizes(high: int, least: int = 1) -> Callable:
    return lambda value: len(value) >= least and all(isinstance(v, int) and 1 <= v <= high for v in value)


def _below_one(value) -> bool:
    return 0 <= value < 1


def _range(value) -> bool:
    return len(value) == 2 and 0.01 <= value[0] <= value[1] <= 100


def _share_range(value) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1] <= 1


def _channels(low: float) -> Callable:
    return lambda value: len(value) in (0, 3) and all(low <= v <= 1000 for v in value)


def _path(value) -> bool:
    return len(value.encode()) <= 2048 and "\0" not in value  # a lone surrogate is no path: it has no encoding


def _name(longest: int) -> tuple[Callable, str]:
    """A rule for what becomes a folder."""
    return (
        lambda value: bool(re.fullmatch(rf"[A-Za-z0-9._-]{{1,{longest}}}", value)) and value.strip(".") != "",
        f"1 to {longest} letters, digits, . _ -, and not only dots",
    )


_COUNT = _between(1, 10**9)
_COUNT_OR_NONE = _between(0, 10**9)
_RATE = _between(0, 1e6)
_SHARE = _between(0, 1)
_BELOW_ONE = (_below_one, "0 or more and less than 1")
_ALPHA = (lambda v: v == 0 or 1e-3 <= v <= 1e3, "0 or between 0.001 and 1000")
_PATH = (lambda v: v != "" and _path(v), "a path of 1 to 2048 bytes of UTF-8")
_PATH_OR_NONE = (_path, "a path of at most 2048 bytes of UTF-8")

# timm's policy names. It passes over a section that it does not understand.
_DECIMAL = r"\d+(\.\d+)?"
POLICIES = re.compile(
    rf"rand(-(m\d\d?|n\d\d?|mmax\d\d?|inc[01]|p{_DECIMAL}|mstd{_DECIMAL}|t(weights|3aw?)))*"
    rf"|augmix(-(m\d\d?|w\d\d?|d\d\d?|b[01]|a{_DECIMAL}|mstd{_DECIMAL}))*"
    rf"|(3a|originalr?|v0r?)(-mstd{_DECIMAL})*"
)

CHOICES: dict[str, tuple[str, ...]] = {
    "DATA.TARGETS": ("single", "multi"),
    "DATA.INTERPOLATION": ("bilinear", "bicubic", "lanczos"),
    "DATA.CACHE_MODE": ("no", "full", "part"),
    "MODEL.TYPE": ("swin", "timm"),
    "TRAIN.BALANCE": ("none", "weights", "sampler"),
    "TRAIN.LOSS.NAME": ("auto", "ce", "bce", "focal", "asymmetric"),
    "TEST.TTA": ("none", "flips", "turns", "all"),
    "TEST.DECIDE_BY": ("threshold", "argmax", "combination", "powerset"),
    "TRAIN.SELECT_BY": ("auto", "accuracy", "hit1", "exact", "macro_f1"),
    "TRAIN.LR_SCHEDULER.NAME": ("cosine", "linear", "step"),
    "TRAIN.OPTIMIZER.NAME": ("adamw", "sgd"),
    "AUG.REMODE": ("const", "rand", "pixel"),
    "AUG.MIXUP_MODE": ("batch", "pair", "elem"),
    "AMP.OPT_LEVEL": ("auto", "O0", "O1", "O2"),
    "AMP.BACKEND": ("native", "apex"),
    "AMP.DTYPE": ("auto", "bf16", "fp16"),
    "DIST.BACKEND": ("auto", "gloo", "nccl"),
}

RANGES: dict[str, tuple[Callable, str]] = {
    "DATA.DATA_PATH": _PATH,
    "DATA.BATCH_SIZE": _COUNT,
    "DATA.NUM_FOLDS": (lambda v: v == 0 or 2 <= v <= 100, "0 (none) or between 2 and 100"),
    "DATA.FOLD": _COUNT_OR_NONE,
    "DATA.IMG_SIZE": _between(1, 4096),
    "DATA.MEAN": (_channels(-1000), "empty or three numbers between -1000 and 1000"),
    "DATA.STD": (_channels(1e-3), "empty or three numbers between 0.001 and 1000"),
    "DATA.NUM_WORKERS": (lambda v: -1 <= v <= 256, "-1 (automatic) or between 0 and 256"),
    "MODEL.NUM_CLASSES": _between(2, 100_000),
    "MODEL.NAME": _name(128),
    "MODEL.PRETRAINED": _PATH_OR_NONE,
    "MODEL.RESUME": _PATH_OR_NONE,
    "MODEL.DROP_RATE": _BELOW_ONE,
    "MODEL.DROP_PATH_RATE": _BELOW_ONE,
    "MODEL.LABEL_SMOOTHING": _BELOW_ONE,
    "MODEL.SWIN.PATCH_SIZE": _between(1, 4096),
    "MODEL.SWIN.IN_CHANS": (lambda v: v == 3, "3: photos are read as RGB"),
    "MODEL.SWIN.EMBED_DIM": _COUNT,
    "MODEL.SWIN.DEPTHS": (_sizes(1000), "a list of whole numbers between 1 and 1000"),
    "MODEL.SWIN.NUM_HEADS": (_sizes(10**6), "a list of whole numbers greater than 0"),
    "MODEL.SWIN.WINDOW_SIZE": _between(1, 4096),
    "MODEL.SWIN.MLP_RATIO": _between(0.01, 1000),
    "MODEL.SWIN.QK_SCALE": (lambda v: v is None or 1e-6 <= v <= 1e6, "null or between 0.000001 and 1000000"),
    "TRAIN.EPOCHS": _between(1, 100_000),
    "TRAIN.WARMUP_EPOCHS": _between(0, 100_000),
    "TRAIN.BASE_LR": _between(1e-12, 1e6),
    "TRAIN.WARMUP_LR": _RATE,
    "TRAIN.MIN_LR": _RATE,
    "TRAIN.HEAD_LR": _RATE,
    "TRAIN.LAYER_DECAY": _between(0.01, 1),
    "TRAIN.FREEZE": (lambda v: all(isinstance(x, str) and x for x in v), "a list of names"),
    "TRAIN.WEIGHT_DECAY": _between(0, 1000),
    "TRAIN.CLIP_GRAD": _between(0, 1e9),
    "TRAIN.ACCUMULATION_STEPS": _COUNT,
    "TRAIN.LOSS.GAMMA": _between(0, 100),
    "TRAIN.LOSS.GAMMA_NEG": _between(0, 100),
    "TRAIN.LOSS.GAMMA_POS": _between(0, 100),
    "TRAIN.LOSS.CLIP": _BELOW_ONE,
    "TRAIN.SNAPSHOT_EPOCHS": (_sizes(100_000, least=0), "a list of epochs, counted from 1"),
    "TRAIN.EMA_DECAY": _BELOW_ONE,
    "TRAIN.MAX_STEPS": _COUNT_OR_NONE,
    "TRAIN.SAVE_EVERY_STEPS": _COUNT_OR_NONE,
    "TRAIN.SAVE_EVERY_MINUTES": _between(0, 7 * 24 * 60),
    "TRAIN.MEMORY_GB": _between(0.01, 10_000),
    "TRAIN.GRACE_SECONDS": _between(0, 24 * 3600),
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": _between(1e-6, 100_000),
    "TRAIN.LR_SCHEDULER.DECAY_RATE": _between(1e-6, 1),
    "TRAIN.OPTIMIZER.EPS": _between(1e-30, 1000),
    "TRAIN.OPTIMIZER.BETAS": (lambda v: len(v) == 2 and all(map(_below_one, v)), "two numbers in [0, 1)"),
    "TRAIN.OPTIMIZER.MOMENTUM": _BELOW_ONE,
    "AUG.SCALE": (_share_range, "two numbers with 0 < first <= second <= 1"),
    "AUG.RATIO": (_range, "two numbers with 0.01 <= first <= second <= 100"),
    "AUG.HFLIP": _SHARE,
    "AUG.VFLIP": _SHARE,
    "AUG.COLOR_JITTER": _between(0, 10),
    "AUG.REPROB": _SHARE,
    "AUG.RECOUNT": _between(1, 1000),
    "AUG.MIXUP": _ALPHA,
    "AUG.CUTMIX": _ALPHA,
    "AUG.CUTMIX_MINMAX": (lambda v: v is None or _share_range(v), "null or two numbers in (0, 1]"),
    "AUG.MIXUP_PROB": _SHARE,
    "AUG.MIXUP_SWITCH_PROB": _SHARE,
    "TEST.IMG_SIZE": _between(0, 4096),
    "DIST.TIMEOUT_SECONDS": _between(1, 7 * 24 * 3600),
    "OUTPUT": _PATH,
    "TAG": _name(64),
    "SAVE_FREQ": _COUNT,
    "PRINT_FREQ": _COUNT,
    "SEED": _between(0, 2**32 - 1),
}


def check_value(key: str, value: object, where: str) -> None:
    """Raises UsageError when `value` is out of the range or not among the choices of `key`."""
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
        raise UsageError(f"{key} at {where}: {value} is not a finite number")
    if key in CHOICES and value not in CHOICES[key]:
        raise UsageError(
            f"{key} at {where}: {value!r} is not one of {', '.join(CHOICES[key])}{nearest(str(value), CHOICES[key])}"
        )
    if key in RANGES:
        holds, wanted = RANGES[key]
        try:
            good = holds(value) and not any(isinstance(v, bool) for v in numbers)  # which Python counts as 0 and 1
        except (TypeError, ValueError, AttributeError):
            good = False
        if not good:
            raise UsageError(f"{key} at {where}: {value!r} must be {wanted}")


def check_combinations(config) -> None:
    """Raises UsageError for values that are right one by one and cannot make a model or read photos together."""
    if bool(config.DATA.MEAN) != bool(config.DATA.STD):
        raise UsageError("DATA.MEAN and DATA.STD must be given together, or neither")
    folds, fold = config.DATA.NUM_FOLDS, config.DATA.FOLD
    if fold > max(folds - 1, 0):
        raise UsageError(
            f"DATA.FOLD {fold}: DATA.NUM_FOLDS is {folds}; folds are counted from 0, e.g. --folds 5 --fold 0"
        )
    if config.MODEL.TYPE == "swin":
        _check_swin(config)


def check_training(config) -> None:
    """Raises UsageError for values that cannot train together; commands that only look at photos do not care."""
    aug, data, train = config.AUG, config.DATA, config.TRAIN
    mixes = aug.MIXUP_PROB > 0 and (aug.MIXUP > 0 or aug.CUTMIX > 0 or aug.CUTMIX_MINMAX is not None)
    if mixes and data.BATCH_SIZE % 2:
        raise UsageError(
            f"DATA.BATCH_SIZE {data.BATCH_SIZE} is odd, and AUG.MIXUP/CUTMIX mix images in pairs; "
            "take an even size, or set AUG.MIXUP 0 AUG.CUTMIX 0"
        )
    if train.WARMUP_EPOCHS > train.EPOCHS:
        raise UsageError(
            f"TRAIN.WARMUP_EPOCHS {train.WARMUP_EPOCHS:g} is more than TRAIN.EPOCHS {train.EPOCHS}; "
            "lower it with --opts TRAIN.WARMUP_EPOCHS N"
        )
    if train.LOSS.NAME != "auto" and (train.LOSS.NAME == "ce") != (data.TARGETS == "single"):
        raise UsageError(
            f"TRAIN.LOSS.NAME {train.LOSS.NAME} does not fit DATA.TARGETS {data.TARGETS}: ce is for single, "
            "bce, focal and asymmetric are for multi"
        )
    if max(train.SNAPSHOT_EPOCHS, default=0) > train.EPOCHS:
        raise UsageError(f"TRAIN.SNAPSHOT_EPOCHS {max(train.SNAPSHOT_EPOCHS)} is after the last epoch, {train.EPOCHS}")
    if train.MIN_LR > train.BASE_LR:
        raise UsageError(f"TRAIN.MIN_LR {train.MIN_LR:g} is more than TRAIN.BASE_LR {train.BASE_LR:g}")
    if aug.AUTO_AUGMENT and not POLICIES.fullmatch(aug.AUTO_AUGMENT):
        raise UsageError(f"AUG.AUTO_AUGMENT {aug.AUTO_AUGMENT!r} is no policy of timm; e.g. rand-m9-mstd0.5-inc1")


def _check_swin(config) -> None:
    swin, size = config.MODEL.SWIN, config.DATA.IMG_SIZE
    if len(swin.DEPTHS) != len(swin.NUM_HEADS):
        raise UsageError(f"MODEL.SWIN.DEPTHS has {len(swin.DEPTHS)} stages and NUM_HEADS {len(swin.NUM_HEADS)}")
    if config.TEST.IMG_SIZE not in (0, size):
        raise UsageError(f"TEST.IMG_SIZE {config.TEST.IMG_SIZE}: a Swin is scored at the size it was built for, {size}")
    if size % swin.PATCH_SIZE:
        raise UsageError(f"DATA.IMG_SIZE {size} is not a multiple of MODEL.SWIN.PATCH_SIZE {swin.PATCH_SIZE}")
    grid, dim = size // swin.PATCH_SIZE, swin.EMBED_DIM
    for stage, heads in enumerate(swin.NUM_HEADS):
        if dim % heads:
            raise UsageError(f"MODEL.SWIN.NUM_HEADS: {heads} heads do not divide the {dim} channels of stage {stage}")
        if grid > swin.WINDOW_SIZE and grid % swin.WINDOW_SIZE:
            raise UsageError(
                f"DATA.IMG_SIZE {size}: the {grid}x{grid} grid of stage {stage} does not divide into "
                f"windows of MODEL.SWIN.WINDOW_SIZE {swin.WINDOW_SIZE}"
            )
        if stage + 1 < len(swin.NUM_HEADS):
            if grid % 2:
                raise UsageError(f"DATA.IMG_SIZE {size}: the {grid}x{grid} grid of stage {stage} cannot be halved")
            grid, dim = grid // 2, dim * 2
