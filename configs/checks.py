"""What a value may be: ranges and choices key by key, then the combinations that cannot work.

Only what can be known without torch, the model or the data is checked here, so that a mistake is answered at once.
"""

import math
import re
from collections.abc import Callable

from tools.errors import UsageError, nearest


def _positive(value) -> bool:
    return value > 0


def _not_negative(value) -> bool:
    return value >= 0


def _share(value) -> bool:
    return 0 <= value <= 1


def _below_one(value) -> bool:
    return 0 <= value < 1


def _range(value) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1]


def _channels(value) -> bool:
    return len(value) in (0, 3) and all(isinstance(v, int | float) and math.isfinite(v) for v in value)


def _sizes(value) -> bool:
    return len(value) > 0 and all(isinstance(v, int) and v > 0 for v in value)


_POSITIVE = (_positive, "greater than 0")
_NOT_NEGATIVE = (_not_negative, "0 or more")
_SHARE = (_share, "between 0 and 1")
_BELOW_ONE = (_below_one, "0 or more and less than 1")

POLICIES = ("rand", "augmix", "3a", "original", "originalr", "v0", "v0r")  # how timm's policy names begin

CHOICES: dict[str, tuple[str, ...]] = {
    "DATA.TARGETS": ("single", "multi"),
    "DATA.INTERPOLATION": ("bilinear", "bicubic", "lanczos"),
    "DATA.CACHE_MODE": ("no", "full", "part"),
    "MODEL.TYPE": ("swin", "timm"),
    "TRAIN.BALANCE": ("none", "weights", "sampler"),
    "TRAIN.LOSS.NAME": ("auto", "ce", "bce", "focal", "asymmetric"),
    "TEST.TTA": ("none", "flips", "turns", "all"),
    "TEST.DECIDE": ("threshold", "argmax", "combination"),
    "TRAIN.SELECT": ("auto", "accuracy", "hit1", "exact", "macro_f1"),
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
    "DATA.BATCH_SIZE": _POSITIVE,
    "DATA.FOLDS": (lambda v: v == 0 or 2 <= v <= 100, "0 (none) or between 2 and 100"),
    "DATA.FOLD": _NOT_NEGATIVE,
    "DATA.IMG_SIZE": (lambda v: 1 <= v <= 4096, "between 1 and 4096"),
    "DATA.MEAN": (_channels, "empty or three numbers"),
    "DATA.STD": (lambda v: _channels(v) and all(x > 0 for x in v), "empty or three numbers greater than 0"),
    "DATA.NUM_WORKERS": (lambda v: -1 <= v <= 256, "-1 (automatic) or between 0 and 256"),
    "MODEL.NUM_CLASSES": (lambda v: v >= 2, "2 or more"),
    "MODEL.NAME": (lambda v: bool(re.fullmatch(r"[A-Za-z0-9._-]{1,128}", v)), "made of letters, digits and . _ -"),
    "MODEL.DROP_RATE": _BELOW_ONE,
    "MODEL.DROP_PATH_RATE": _BELOW_ONE,
    "MODEL.LABEL_SMOOTHING": _BELOW_ONE,
    "MODEL.SWIN.PATCH_SIZE": _POSITIVE,
    "MODEL.SWIN.IN_CHANS": (lambda v: v == 3, "3: photos are read as RGB"),
    "MODEL.SWIN.EMBED_DIM": _POSITIVE,
    "MODEL.SWIN.DEPTHS": (_sizes, "a list of whole numbers greater than 0"),
    "MODEL.SWIN.NUM_HEADS": (_sizes, "a list of whole numbers greater than 0"),
    "MODEL.SWIN.WINDOW_SIZE": _POSITIVE,
    "MODEL.SWIN.MLP_RATIO": _POSITIVE,
    "MODEL.SWIN.QK_SCALE": (lambda v: v is None or v > 0, "null or greater than 0"),
    "TRAIN.EPOCHS": _POSITIVE,
    "TRAIN.WARMUP_EPOCHS": _NOT_NEGATIVE,
    "TRAIN.BASE_LR": _POSITIVE,
    "TRAIN.WARMUP_LR": _NOT_NEGATIVE,
    "TRAIN.MIN_LR": _NOT_NEGATIVE,
    "TRAIN.HEAD_LR": _NOT_NEGATIVE,
    "TRAIN.LAYER_DECAY": (lambda v: 0 < v <= 1, "greater than 0 and at most 1"),
    "TRAIN.FREEZE": (lambda v: all(isinstance(x, str) and x for x in v), "a list of names"),
    "TRAIN.WEIGHT_DECAY": _NOT_NEGATIVE,
    "TRAIN.CLIP_GRAD": _NOT_NEGATIVE,
    "TRAIN.ACCUMULATION_STEPS": _POSITIVE,
    "TRAIN.LOSS.GAMMA": _NOT_NEGATIVE,
    "TRAIN.LOSS.GAMMA_NEG": _NOT_NEGATIVE,
    "TRAIN.LOSS.GAMMA_POS": _NOT_NEGATIVE,
    "TRAIN.LOSS.CLIP": _BELOW_ONE,
    "TRAIN.SNAPSHOTS": (lambda v: not v or _sizes(v), "a list of epochs, counted from 1"),
    "TRAIN.EMA_DECAY": _BELOW_ONE,
    "TRAIN.MAX_STEPS": _NOT_NEGATIVE,
    "TRAIN.SAVE_EVERY_STEPS": _NOT_NEGATIVE,
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": _POSITIVE,
    "TRAIN.LR_SCHEDULER.DECAY_RATE": (lambda v: 0 < v <= 1, "greater than 0 and at most 1"),
    "TRAIN.OPTIMIZER.EPS": _POSITIVE,
    "TRAIN.OPTIMIZER.BETAS": (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "two numbers in [0, 1)"),
    "TRAIN.OPTIMIZER.MOMENTUM": _BELOW_ONE,
    "AUG.SCALE": (lambda v: _range(v) and v[1] <= 1, "two numbers with 0 < first <= second <= 1"),
    "AUG.RATIO": (_range, "two numbers with 0 < first <= second"),
    "AUG.HFLIP": _SHARE,
    "AUG.VFLIP": _SHARE,
    "AUG.COLOR_JITTER": _NOT_NEGATIVE,
    "AUG.REPROB": _SHARE,
    "AUG.RECOUNT": _POSITIVE,
    "AUG.MIXUP": _NOT_NEGATIVE,
    "AUG.CUTMIX": _NOT_NEGATIVE,
    "AUG.CUTMIX_MINMAX": (lambda v: v is None or (_range(v) and v[1] <= 1), "null or two numbers in (0, 1]"),
    "AUG.MIXUP_PROB": _SHARE,
    "AUG.MIXUP_SWITCH_PROB": _SHARE,
    "TEST.IMG_SIZE": (lambda v: 0 <= v <= 4096, "between 0 and 4096"),
    "DIST.TIMEOUT_SECONDS": _POSITIVE,
    "OUTPUT": (lambda v: 0 < len(v.encode()) <= 2048 and "\0" not in v, "a path of at most 2048 bytes"),
    "DATA.DATA_PATH": (lambda v: 0 < len(v.encode()) <= 2048 and "\0" not in v, "a path of at most 2048 bytes"),
    "TAG": (
        lambda v: bool(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", v)) and v.strip(".") != "",
        "1 to 64 letters, digits, . _ -",
    ),
    "SAVE_FREQ": _POSITIVE,
    "PRINT_FREQ": _POSITIVE,
    "SEED": (lambda v: 0 <= v < 2**32, "between 0 and 2**32 - 1"),
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
            good = holds(value)
        except TypeError:
            good = False
        if not good:
            raise UsageError(f"{key} at {where}: {value!r} must be {wanted}")


def check_combinations(config) -> None:
    """Raises UsageError for values that are right one by one and cannot make a model or read photos together."""
    if bool(config.DATA.MEAN) != bool(config.DATA.STD):
        raise UsageError("DATA.MEAN and DATA.STD must be given together, or neither")
    folds, fold = config.DATA.FOLDS, config.DATA.FOLD
    if fold > max(folds - 1, 0):
        raise UsageError(f"DATA.FOLD {fold}: DATA.FOLDS is {folds}; folds are counted from 0, e.g. --folds 5 --fold 0")
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
    if max(train.SNAPSHOTS, default=0) > train.EPOCHS:
        raise UsageError(f"TRAIN.SNAPSHOTS {max(train.SNAPSHOTS)} is after the last epoch, {train.EPOCHS}")
    if train.MIN_LR > train.BASE_LR:
        raise UsageError(f"TRAIN.MIN_LR {train.MIN_LR:g} is more than TRAIN.BASE_LR {train.BASE_LR:g}")
    if aug.AUTO_AUGMENT and aug.AUTO_AUGMENT.split("-")[0] not in POLICIES:
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
