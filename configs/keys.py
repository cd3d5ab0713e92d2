"""Every config key, one row each: default, meaning, check, whether it may change on resume, and its flag.

The rows make up the yacs tree; nothing else defines a key. `python -m configs.keys` prints them as docs/config.md.
Names and values follow the course project unless docs/course-project.md says why not.
"""

from typing import NamedTuple

from yacs.config import CfgNode

from configs.values import (
    ANYTHING,
    BELOW_ONE,
    COUNT,
    COUNT_OR_NONE,
    NAMES,
    PAIR_BELOW_ONE,
    PATH,
    PATH_OR_NONE,
    POLICY,
    RATE,
    SHARE,
    SHARE_RANGE,
    Check,
    between,
    channels,
    folder_name,
    list_of,
    null_or,
    one_of,
    ordered_pair,
    zero_or,
)


class Key(NamedTuple):
    """A config key."""

    default: object  # its value unless something sets it; its type is the type of every value (None takes every type)
    doc: str  # what it means, for people
    check: Check = ANYTHING  # what a value may be
    may_change: bool = False  # a run may be resumed with another value, because it does not change the result
    flag: str = ""  # the command-line flag that sets it


FIGURES = ("exact", "hit1", "accuracy", "macro_f1")  # by which epochs are selected and runs compared
_POSITIVE_LR = between(1e-12, 1e6)
_ALPHA = zero_or(1e-3, 1e3)

KEYS: dict[str, Key] = {
    # data
    "DATA.DATA_PATH": Key("dataset", "folder that process_dataset.py wrote", PATH, flag="--data-path", may_change=True),
    "DATA.TARGETS": Key(
        "single",
        "single: one class per label copy; multi: one multi-hot target per photo; auto: multi where a training photo "
        "has several labels, else single",
        one_of("single", "multi", "auto"),
    ),
    "DATA.NUM_FOLDS": Key(
        0,
        "cut the training photos into N folds, duplicates and groups whole, and validate on one; 0: use the val split",
        zero_or(2, 100),
        flag="--folds",
    ),
    "DATA.FOLD": Key(0, "fold to validate on, from 0", COUNT_OR_NONE, flag="--fold"),
    "DATA.BATCH_SIZE": Key(32, "images per batch on each rank", COUNT, flag="--batch-size"),
    "DATA.IMG_SIZE": Key(224, "side of the model's input in training, in pixels", between(1, 4096)),
    "DATA.RESIZE": Key(
        "crop",
        "how a photo becomes a square, in training and scoring: squash changes its shape; letterbox pads it with the "
        "mean colour; crop cuts the centre out of 256/224 of the size (in training, random parts out of the photo)",
        one_of("squash", "crop", "letterbox"),
    ),
    "DATA.INTERPOLATION": Key("bicubic", "resizing filter", one_of("bilinear", "bicubic", "lanczos")),
    "DATA.MEAN": Key([], "mean of RGB in [0, 1]; empty: the model's own", channels(-1000)),
    "DATA.STD": Key([], "standard deviation of RGB in [0, 1]; empty: the model's own", channels(1e-3)),
    "DATA.ZIP_MODE": Key(False, "read <data path>/<split>.zip instead of the folders", flag="--zip", may_change=True),
    "DATA.FOLLOW_LINKS": Key(
        False, "accept photos and class folders that link out of their split", flag="--follow-links", may_change=True
    ),
    "DATA.CACHE_MODE": Key(
        "no",
        "no; full: decoded photos in one file that all ranks share; part: each rank keeps its share of the files",
        one_of("no", "full", "part"),
        flag="--cache-mode",
        may_change=True,
    ),
    "DATA.PIN_MEMORY": Key(True, "copy batches to a GPU from pinned memory", may_change=True),
    "DATA.NUM_WORKERS": Key(
        -1, "loader processes per rank; -1: one per core of the rank, at most 8", between(-1, 256), may_change=True
    ),
    # model
    "MODEL.TYPE": Key("swin", "swin: our own Swin; timm: a model of timm (models.md)", one_of("swin", "timm")),
    "MODEL.NAME": Key(
        "swin_tiny_patch4_window7_224",
        "names the run folder, the timm model, and the weights that PRETRAINED auto looks for",
        folder_name(128),
    ),
    "MODEL.NUM_CLASSES": Key(
        0,
        "number of class folders; 0: as many as the training split has (--throughput reads no photos, and takes 6)",
        zero_or(2, 100_000),
    ),
    "MODEL.PRETRAINED": Key(
        "none", "weights to start from: a file, auto or none", PATH_OR_NONE, may_change=True, flag="--pretrained"
    ),
    "MODEL.RESUME": Key(
        "", "checkpoint to resume from (with --eval: to score)", PATH_OR_NONE, may_change=True, flag="--resume"
    ),
    "MODEL.DROP_RATE": Key(0.0, "dropout", BELOW_ONE),
    "MODEL.DROP_PATH_RATE": Key(0.1, "stochastic depth of the last block; grows linearly from 0", BELOW_ONE),
    "MODEL.LABEL_SMOOTHING": Key(0.1, "share of a target that is spread over all classes", BELOW_ONE),
    "MODEL.SWIN.PATCH_SIZE": Key(4, "side of a patch in pixels", between(1, 4096)),
    "MODEL.SWIN.EMBED_DIM": Key(96, "channels of the first stage; each stage doubles them", COUNT),
    "MODEL.SWIN.DEPTHS": Key([2, 2, 6, 2], "blocks per stage", list_of(1, 1000)),
    "MODEL.SWIN.NUM_HEADS": Key([3, 6, 12, 24], "attention heads per stage", list_of(1, 10**6)),
    "MODEL.SWIN.WINDOW_SIZE": Key(7, "side of an attention window in tokens", between(1, 4096)),
    "MODEL.SWIN.MLP_RATIO": Key(4.0, "hidden channels of an MLP per channel", between(0.01, 1000)),
    "MODEL.SWIN.QKV_BIAS": Key(True, "a bias on queries, keys and values"),
    "MODEL.SWIN.QK_SCALE": Key(None, "factor on attention scores; null: head_dim ** -0.5", null_or(between(1e-6, 1e6))),
    "MODEL.SWIN.APE": Key(False, "a learned absolute position embedding"),
    "MODEL.SWIN.PATCH_NORM": Key(True, "a norm after the patch embedding"),
    # training
    "TRAIN.EPOCHS": Key(300, "epochs of the whole run", between(1, 100_000)),
    "TRAIN.WARMUP_EPOCHS": Key(20.0, "epochs of linear warm-up, part of EPOCHS; may be a fraction", RATE),
    "TRAIN.BASE_LR": Key(5e-4, "peak learning rate at 512 images per update, scaled with their number", _POSITIVE_LR),
    "TRAIN.WARMUP_LR": Key(5e-7, "learning rate at step 0, scaled likewise", RATE),
    "TRAIN.MIN_LR": Key(5e-6, "learning rate at the end of a cosine, scaled likewise", RATE),
    "TRAIN.HEAD_LR": Key(0.0, "BASE_LR of the head; 0: the same as the rest", RATE),
    "TRAIN.LAYER_DECAY": Key(
        1.0, "learning rate of a layer / that of the next one (BEiT, arXiv 2106.08254, appendix)", between(0.01, 1)
    ),
    "TRAIN.FREEZE": Key([], 'modules that are not trained, e.g. ["patch_embed"]', NAMES),
    "TRAIN.WEIGHT_DECAY": Key(0.05, "weight decay of matrices and kernels", between(0, 1000)),
    "TRAIN.CLIP_GRAD": Key(5.0, "largest gradient norm of an update; 0: no clipping", between(0, 1e9)),
    "TRAIN.ACCUMULATION_STEPS": Key(1, "batches per update", COUNT, flag="--accumulation-steps"),
    "TRAIN.USE_CHECKPOINT": Key(
        False,
        "recompute all activations in backward: about a seventh of their memory on a GPU, more time",
        flag="--use-checkpoint",
    ),
    "TRAIN.SELECTIVE_CHECKPOINT": Key(
        False,
        "recompute only GELU and attention scores: about three quarters of the activation memory on a GPU; Swin only",
    ),
    "TRAIN.COMPILE": Key(False, "torch.compile the forward pass of training, where torch can"),
    "TRAIN.AUTO_RESUME": Key(True, "resume from last.pth when the run folder has one", may_change=True),
    "TRAIN.EMA_DECAY": Key(0.0, "moving average of the weights, used to validate and to test; 0: off", BELOW_ONE),
    "TRAIN.BALANCE": Key(
        "none",
        "rare classes: weights in the loss (inverse root of the count), or a sampler; none",
        one_of("none", "weights", "sampler"),
    ),
    "TRAIN.SOFT_LABELS": Key(
        "",
        "predictions.csv of test.py --split held-out, whose probabilities are mixed into the training targets",
        PATH_OR_NONE,
        may_change=True,  # its content may not, see RunData.digests
    ),
    "TRAIN.SOFT_WEIGHT": Key(0.5, "share of SOFT_LABELS in a target; the rest is the photo's labels", between(0, 1)),
    "TRAIN.SNAPSHOT_EPOCHS": Key(
        [], "epochs, from 1, after which the weights are kept as epochs/epoch_NNN.pth", list_of(1, 100_000, 0), True
    ),
    "TRAIN.SELECT_BY": Key(
        "auto",
        "validation score that selects best.pth; auto: accuracy (single) or macro_f1 (multi)",
        one_of("auto", *FIGURES),
    ),
    "TRAIN.MAX_STEPS": Key(0, "stop after this many updates in all, resumable; 0: every epoch", COUNT_OR_NONE, True),
    "TRAIN.SAVE_EVERY_STEPS": Key(0, "updates between writes of last.pth in an epoch; 0: none", COUNT_OR_NONE, True),
    "TRAIN.SAVE_EVERY_MINUTES": Key(0.0, "minutes between writes of last.pth; 0: none", between(0, 10_080), True),
    "TRAIN.PROFILE": Key(
        0,
        "record this many updates, after the first, as trace.json and as a table in the log; 0: none",
        COUNT_OR_NONE,
        True,
        "--profile",
    ),
    "TRAIN.TENSORBOARD": Key(
        False, "write the figures of log and metrics.csv for TensorBoard too", flag="--tensorboard", may_change=True
    ),
    "TRAIN.DETERMINISTIC": Key(False, "bit-identical runs on a GPU as well, for some speed"),
    "TRAIN.LOSS.NAME": Key(
        "auto",
        "ce: one class per image; bce, focal, asymmetric: any number of labels; auto: ce or bce",
        one_of("auto", "ce", "bce", "focal", "asymmetric"),
    ),
    "TRAIN.LOSS.GAMMA": Key(2.0, "focusing exponent of focal", between(0, 100)),
    "TRAIN.LOSS.GAMMA_NEG": Key(4.0, "focusing exponent of asymmetric for absent labels", between(0, 100)),
    "TRAIN.LOSS.GAMMA_POS": Key(0.0, "focusing exponent of asymmetric for present labels", between(0, 100)),
    "TRAIN.LOSS.CLIP": Key(0.05, "probability that asymmetric subtracts from absent labels", BELOW_ONE),
    "TRAIN.LR_SCHEDULER.NAME": Key("cosine", "schedule of the learning rate", one_of("cosine", "linear", "step")),
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": Key(30.0, "epochs between the drops of step", between(1e-6, 100_000)),
    "TRAIN.LR_SCHEDULER.DECAY_RATE": Key(0.1, "factor of each drop of step", between(1e-6, 1)),
    "TRAIN.OPTIMIZER.NAME": Key("adamw", "adamw, or sgd with Nesterov momentum", one_of("adamw", "sgd")),
    "TRAIN.OPTIMIZER.EPS": Key(1e-8, "epsilon of adamw", between(1e-30, 1000)),
    "TRAIN.OPTIMIZER.BETAS": Key([0.9, 0.999], "decay rates of adamw's moments", PAIR_BELOW_ONE),
    "TRAIN.OPTIMIZER.MOMENTUM": Key(0.9, "momentum of sgd", BELOW_ONE),
    # augmentation
    "AUG.SCALE": Key(
        [0.08, 1.0], "area of a random crop as a share of the photo's, with letterbox of the square's", SHARE_RANGE
    ),
    "AUG.RATIO": Key([0.75, 1.3333333333333333], "width / height of a random crop", ordered_pair(0.01, 100)),
    "AUG.HFLIP": Key(0.5, "probability of a left-right flip", SHARE),
    "AUG.VFLIP": Key(0.0, "probability of an upside-down flip", SHARE),
    "AUG.QUARTER_TURNS": Key(False, "turn by 0, 90, 180 or 270 degrees at random"),
    "AUG.COLOR_JITTER": Key(0.4, "strength of colour jitter, used when AUTO_AUGMENT is empty", between(0, 10)),
    "AUG.AUTO_AUGMENT": Key("rand-m9-mstd0.5-inc1", "policy in timm's notation; empty: none", POLICY),
    "AUG.REPROB": Key(0.25, "probability of random erasing", SHARE),
    "AUG.REMODE": Key("pixel", "what random erasing fills in", one_of("const", "rand", "pixel")),
    "AUG.RECOUNT": Key(1, "rectangles per random erasing", between(1, 1000)),
    "AUG.MIXUP": Key(0.8, "alpha of Mixup; 0: off", _ALPHA),
    "AUG.CUTMIX": Key(1.0, "alpha of CutMix; 0: off", _ALPHA),
    "AUG.CUTMIX_MINMAX": Key(
        None, "[smallest, largest] side of the cut as a share of the image's, instead of alpha", null_or(SHARE_RANGE)
    ),
    "AUG.MIXUP_PROB": Key(1.0, "probability that an image is mixed at all", SHARE),
    "AUG.MIXUP_SWITCH_PROB": Key(0.5, "probability of CutMix where both are on", SHARE),
    "AUG.MIXUP_MODE": Key("batch", "images that share one lambda", one_of("batch", "pair", "elem")),
    # scoring
    "TEST.IMG_SIZE": Key(0, "size at which photos are scored, for models that take any; 0: IMG_SIZE", between(0, 4096)),
    "TEST.TTA": Key(
        "none",
        "views that are averaged: flips (4), turns (4 quarter turns), all (8) or none",
        one_of("none", "flips", "turns", "all"),
        flag="--tta",
        may_change=True,
    ),
    "TEST.DECIDE_BY": Key(
        "threshold",
        "labels by threshold (for F1), argmax (one label; for hit@1), or for exact match: combination (the likeliest "
        "set seen in training), powerset (the likeliest by a regression on all labels)",
        one_of("threshold", "argmax", "combination", "powerset"),
        flag="--decide",
    ),
    # the machine and the run
    "DEVICE": Key("auto", "auto: the GPU where there is one; or cpu", one_of("auto", "cpu"), True, "--device"),
    "AMP.OPT_LEVEL": Key(
        "auto",
        "O0: fp32 (on a GPU, products in TF32); O1, O2: mixed precision; auto: O1 on a GPU, O0 on a CPU",
        one_of("auto", "O0", "O1", "O2"),
        flag="--amp-opt-level",
    ),
    "AMP.BACKEND": Key("native", "native (torch.amp), or apex (NVIDIA's, one GPU only)", one_of("native", "apex")),
    "AMP.DTYPE": Key("auto", "dtype of native; auto: bf16 where the card has it", one_of("auto", "bf16", "fp16")),
    "DIST.BACKEND": Key("auto", "auto: nccl on a GPU, else gloo", one_of("auto", "gloo", "nccl"), may_change=True),
    "DIST.REDUCE_DTYPE": Key("none", "dtype in which gradients are summed; none: their own", one_of("none", "bf16")),
    "DIST.TIMEOUT_SECONDS": Key(600, "a rank that is silent for so long is treated as lost", between(1, 604_800), True),
    "OUTPUT": Key("output", "folder of the run folders", PATH, flag="--output", may_change=True),
    "TAG": Key("default", "names the run: <output>/<MODEL.NAME>/<tag>", folder_name(64), flag="--tag", may_change=True),
    "SAVE_FREQ": Key(1, "epochs between writes of last.pth", COUNT, may_change=True),
    "PRINT_FREQ": Key(10, "updates between log lines", COUNT, may_change=True),
    "SEED": Key(0, "seed of everything random", between(0, 2**32 - 1)),
}

# Removed key -> the key that replaced it, or what happened to it. Used in errors, and to read the configs inside
# older checkpoints.
FORMER_KEYS: dict[str, str] = {
    "AMP_OPT_LEVEL": "AMP.OPT_LEVEL",
    "DATA.DATASET": "the folder names the classes",
    "DATA.FOLDS": "DATA.NUM_FOLDS",
    "EVAL_MODE": "use the flag --eval",
    "LOCAL_RANK": "torchrun sets it",
    "MODEL.SWIN.IN_CHANS": "photos are read as RGB",
    "TEST.CROP": "DATA.RESIZE",
    "TEST.DECIDE": "TEST.DECIDE_BY",
    "THROUGHPUT_MODE": "use the flag --throughput",
    "TRAIN.FIT_MEMORY": "a batch that does not fit into memory is halved automatically",
    "TRAIN.GRACE_SECONDS": "an update is always finished; a second Ctrl-C exits at once",
    "TRAIN.LEAN": "TRAIN.SELECTIVE_CHECKPOINT",
    "TRAIN.MEMORY_GB": "a batch that does not fit into memory is halved automatically",
    "TRAIN.SELECT": "TRAIN.SELECT_BY",
    "TRAIN.SNAPSHOTS": "TRAIN.SNAPSHOT_EPOCHS",
    "TRAIN.START_EPOCH": "the epoch follows from the step in the checkpoint",
}

# Removed key -> what its values are for the key that replaced it, where they differ.
FORMER_VALUES: dict[str, dict[str, str]] = {"TEST.CROP": {"true": "crop", "false": "squash"}}


def get_defaults() -> CfgNode:
    """A new tree of all defaults."""
    tree = CfgNode()
    for name, key in KEYS.items():
        *groups, leaf = name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, CfgNode())
        node[leaf] = list(key.default) if isinstance(key.default, list) else key.default
    return tree


def show(value: object) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else (repr(value) if value == "" else str(value))


def show_former_values(key: str) -> str:
    """` (old: new, ...)` for a removed key whose values have changed, else nothing."""
    pairs = ", ".join(f"{was}: {now}" for was, now in FORMER_VALUES.get(key, {}).items())
    return f" ({pairs})" if pairs else ""


def reference() -> str:
    """All keys as a Markdown page, docs/config.md."""
    lines = [
        "# Config keys",
        "",
        "Set a key in a YAML file, with `--opts KEY VALUE`, or by its flag. `python main.py --cfg FILE --print-config`",
        "shows every value and where it came from. `python -m configs.keys` prints this page.",
        "",
        "| key | flag | default | meaning | values | on resume |",
        "|---|---|---|---|---|---|",
    ]
    for name, key in KEYS.items():
        cells = (f"`{name}`", key.flag, f"`{show(key.default)}`", key.doc, key.check.words)
        lines.append(f"| {' | '.join(cells)} | {'may change' if key.may_change else ''} |")
    lines += ["", "## Former keys", "", "| key | now |", "|---|---|"]
    lines += [
        f"| `{old}` | {f'`{now}`' if now in KEYS else now}{show_former_values(old)} |"
        for old, now in FORMER_KEYS.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
