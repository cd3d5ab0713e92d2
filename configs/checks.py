"""Checks across keys: values that are each valid but do not work together.

Only what can be known without torch, the model or the data is checked here, so that errors appear immediately.
"""

from yacs.config import CfgNode

from tools.base.errors import UsageError


def check_combinations(config: CfgNode) -> None:
    """Raises UsageError for values that conflict in building the model or in reading photos."""
    if bool(config.DATA.MEAN) != bool(config.DATA.STD):
        raise UsageError("DATA.MEAN and DATA.STD work only together; give both, or neither")
    num_folds, fold = config.DATA.NUM_FOLDS, config.DATA.FOLD
    if fold > max(num_folds - 1, 0):
        raise UsageError(
            f"DATA.FOLD {fold}: DATA.NUM_FOLDS is {num_folds}; folds are counted from 0, e.g. --folds 5 --fold 0"
        )
    if config.MODEL.TYPE == "swin":
        _check_swin(config)


def check_training(config: CfgNode) -> None:
    """Raises UsageError for values that conflict in training; commands that only predict do not check them."""
    aug, data, train = config.AUG, config.DATA, config.TRAIN
    mixes = aug.MIXUP_PROB > 0 and (aug.MIXUP > 0 or aug.CUTMIX > 0 or aug.CUTMIX_MINMAX is not None)
    if mixes and data.BATCH_SIZE % 2:
        raise UsageError(
            f"DATA.BATCH_SIZE {data.BATCH_SIZE} is odd, and AUG.MIXUP/CUTMIX mix images in pairs; "
            "use an even size, or set AUG.MIXUP 0 AUG.CUTMIX 0"
        )
    if train.WARMUP_EPOCHS > train.EPOCHS:
        raise UsageError(
            f"TRAIN.WARMUP_EPOCHS {train.WARMUP_EPOCHS:g} is more than TRAIN.EPOCHS {train.EPOCHS}; "
            "lower it with --opts TRAIN.WARMUP_EPOCHS N"
        )
    if "auto" not in (train.LOSS.NAME, data.TARGETS) and (train.LOSS.NAME == "ce") != (data.TARGETS == "single"):
        raise UsageError(
            f"TRAIN.LOSS.NAME {train.LOSS.NAME} does not fit DATA.TARGETS {data.TARGETS}: ce is for single, "
            "bce, focal and asymmetric are for multi"
        )
    if max(train.SNAPSHOT_EPOCHS, default=0) > train.EPOCHS:
        raise UsageError(f"TRAIN.SNAPSHOT_EPOCHS {max(train.SNAPSHOT_EPOCHS)} is after the last epoch, {train.EPOCHS}")
    if config.AMP.BACKEND == "apex" and config.AMP.OPT_LEVEL == "O2" and train.EMA_DECAY:
        raise UsageError(
            f"TRAIN.EMA_DECAY {train.EMA_DECAY:g} cannot average the fp16 weights of AMP.BACKEND apex with O2; "
            "set TRAIN.EMA_DECAY 0, AMP.OPT_LEVEL O1 or AMP.BACKEND native"
        )
    if train.MIN_LR > train.BASE_LR:
        raise UsageError(f"TRAIN.MIN_LR {train.MIN_LR:g} is more than TRAIN.BASE_LR {train.BASE_LR:g}")


def _check_swin(config: CfgNode) -> None:
    """Every stage's grid must be one window or divide into windows, and be halved between stages."""
    swin, size = config.MODEL.SWIN, config.DATA.IMG_SIZE
    if len(swin.DEPTHS) != len(swin.NUM_HEADS):
        raise UsageError(f"MODEL.SWIN.DEPTHS has {len(swin.DEPTHS)} stages and NUM_HEADS {len(swin.NUM_HEADS)}")
    if config.TEST.IMG_SIZE not in (0, size):
        raise UsageError(f"TEST.IMG_SIZE {config.TEST.IMG_SIZE}: a Swin scores at the size it was built for, {size}")
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
