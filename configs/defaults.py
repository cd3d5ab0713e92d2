"""The annotated default tree, nothing else. Every key can be set in a YAML file, with `--opts KEY VALUE`, or by a flag.

Key names and values follow the course project unless the comment says why not.
"""

from yacs.config import CfgNode as CN

_C = CN()

# ---------------------------------------------------------------- data
_C.DATA = CN()
_C.DATA.DATA_PATH = "dataset"  # what process_dataset.py wrote: {train,val,test}/{one-hot code}/ID.jpg
_C.DATA.TARGETS = "single"  # single: every copy is a sample with one class; multi: one photo, a multi-hot target
_C.DATA.NUM_FOLDS = (
    0  # K: cut the training photos into K parts, train on K - 1 and validate on one; 0: use the val split
)
_C.DATA.FOLD = 0  # the part that is validated on, 0 .. K - 1
_C.DATA.BATCH_SIZE = 32  # images a rank takes at a time
_C.DATA.IMG_SIZE = 224
_C.DATA.INTERPOLATION = "bicubic"  # bilinear, bicubic, lanczos
_C.DATA.MEAN = []  # of RGB in [0, 1]; empty: the model's own (ImageNet's for Swin, timm's entry for the others)
_C.DATA.STD = []
_C.DATA.ZIP_MODE = False  # read <DATA_PATH>/<split>.zip instead of the folder
_C.DATA.FOLLOW_LINKS = False  # take photos and class folders that are links out of their split
_C.DATA.CACHE_MODE = "no"  # no; full: decoded, one file for all ranks; part: this rank's files in memory, encoded
_C.DATA.PIN_MEMORY = True
_C.DATA.NUM_WORKERS = -1  # loader processes a rank; -1: one a core that the rank may use, at most 8

# ---------------------------------------------------------------- model
_C.MODEL = CN()
_C.MODEL.TYPE = "swin"  # swin: our own; timm: any timm name
_C.MODEL.NAME = "swin_tiny_patch4_window7_224"  # names the run folder, and the weights that PRETRAINED auto looks for
_C.MODEL.NUM_CLASSES = 6
_C.MODEL.PRETRAINED = "none"  # weights to start from: a file, auto or none
_C.MODEL.RESUME = ""  # checkpoint to continue from
_C.MODEL.DROP_RATE = 0.0
_C.MODEL.DROP_PATH_RATE = 0.1  # stochastic depth of the last block; it grows linearly from 0
_C.MODEL.LABEL_SMOOTHING = 0.1
_C.MODEL.SWIN = CN()
_C.MODEL.SWIN.PATCH_SIZE = 4
_C.MODEL.SWIN.IN_CHANS = 3
_C.MODEL.SWIN.EMBED_DIM = 96
_C.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
_C.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
_C.MODEL.SWIN.WINDOW_SIZE = 7
_C.MODEL.SWIN.MLP_RATIO = 4.0
_C.MODEL.SWIN.QKV_BIAS = True
_C.MODEL.SWIN.QK_SCALE = None  # None: head_dim ** -0.5
_C.MODEL.SWIN.APE = False  # a learned absolute position embedding
_C.MODEL.SWIN.PATCH_NORM = True

# ---------------------------------------------------------------- training
_C.TRAIN = CN()
_C.TRAIN.EPOCHS = 300
_C.TRAIN.WARMUP_EPOCHS = 20.0  # part of EPOCHS, not before them; may be a fraction
_C.TRAIN.BASE_LR = 5e-4  # for 512 images an update; the run uses BASE_LR x images an update / 512
_C.TRAIN.WARMUP_LR = 5e-7  # scaled likewise
_C.TRAIN.MIN_LR = 5e-6  # scaled likewise
_C.TRAIN.HEAD_LR = 0.0  # the head's own BASE_LR; 0: that of the rest
_C.TRAIN.LAYER_DECAY = 1.0  # rate of a layer = rate of the next one x this (BEiT, arXiv 2106.08254, appendix)
_C.TRAIN.FREEZE = []  # what is not trained, by the beginning of its name: ["patch_embed", "layers.0"]
_C.TRAIN.WEIGHT_DECAY = 0.05
_C.TRAIN.CLIP_GRAD = 5.0  # largest gradient norm of an update; 0: no clipping
_C.TRAIN.ACCUMULATION_STEPS = 1  # batches added up to one update
_C.TRAIN.USE_CHECKPOINT = False  # recompute activations in backward: less memory, more time
_C.TRAIN.FIT_MEMORY = False  # measure how many images of a batch fit, and take so many at a time; the update stays
_C.TRAIN.MEMORY_GB = 8.0  # what FIT_MEMORY may fill on a CPU, in GiB; on a GPU it is what is free
_C.TRAIN.SELECTIVE_CHECKPOINT = (
    False  # recompute GELU and attention scores only: two thirds of the memory for little time; Swin
)
_C.TRAIN.COMPILE = False  # torch.compile the forward pass of training; goes on without where that fails
_C.TRAIN.AUTO_RESUME = True  # go on from last.pth when the run folder has one
_C.TRAIN.EMA_DECAY = 0.0  # moving average of the weights, used to validate and to test; 0: off
_C.TRAIN.BALANCE = "none"  # rare classes: weights in the loss (inverse root of the count), or a sampler; none
_C.TRAIN.SNAPSHOT_EPOCHS = []  # epochs (counted from 1) after which the weights are kept as epochs/epoch_NNN.pth
_C.TRAIN.SELECT_BY = "auto"  # score that chooses best.pth: accuracy, hit1, exact, macro_f1; auto: accuracy or macro_f1
_C.TRAIN.MAX_STEPS = 0  # stop after this many updates in all, resumable; 0: train every epoch
_C.TRAIN.SAVE_EVERY_STEPS = 0  # write last.pth inside an epoch too; 0: at its end only
_C.TRAIN.SAVE_EVERY_MINUTES = 0.0  # likewise, by the clock
_C.TRAIN.GRACE_SECONDS = 20.0  # after a signal, an update that takes longer is dropped; 0: waited for
_C.TRAIN.DETERMINISTIC = False  # bit-identical runs on a GPU as well, for some speed
_C.TRAIN.LOSS = CN()
_C.TRAIN.LOSS.NAME = "auto"  # ce: one class; bce, focal, asymmetric: any number; auto: ce or bce
_C.TRAIN.LOSS.GAMMA = 2.0  # of focal
_C.TRAIN.LOSS.GAMMA_NEG = 4.0  # of asymmetric, absent labels
_C.TRAIN.LOSS.GAMMA_POS = 0.0  # of asymmetric, present labels
_C.TRAIN.LOSS.CLIP = 0.05  # of asymmetric: probability taken off absent labels
_C.TRAIN.LR_SCHEDULER = CN()
_C.TRAIN.LR_SCHEDULER.NAME = "cosine"  # cosine, linear, step
_C.TRAIN.LR_SCHEDULER.DECAY_EPOCHS = 30.0  # of step
_C.TRAIN.LR_SCHEDULER.DECAY_RATE = 0.1  # of step
_C.TRAIN.OPTIMIZER = CN()
_C.TRAIN.OPTIMIZER.NAME = "adamw"  # adamw; sgd: with Nesterov momentum
_C.TRAIN.OPTIMIZER.EPS = 1e-8
_C.TRAIN.OPTIMIZER.BETAS = [0.9, 0.999]
_C.TRAIN.OPTIMIZER.MOMENTUM = 0.9

# ---------------------------------------------------------------- augmentation
_C.AUG = CN()
_C.AUG.SCALE = [0.08, 1.0]  # share of the photo's area that a random crop keeps
_C.AUG.RATIO = [0.75, 1.3333333333333333]  # its width / height
_C.AUG.HFLIP = 0.5
_C.AUG.VFLIP = 0.0
_C.AUG.QUARTER_TURNS = False  # turn by 0, 90, 180 or 270 degrees: a leaf has no upright
_C.AUG.COLOR_JITTER = 0.4  # used when AUTO_AUGMENT is empty
_C.AUG.AUTO_AUGMENT = "rand-m9-mstd0.5-inc1"  # timm's notation; empty: none
_C.AUG.REPROB = 0.25  # random erasing
_C.AUG.REMODE = "pixel"
_C.AUG.RECOUNT = 1
_C.AUG.MIXUP = 0.8  # alpha; 0: off
_C.AUG.CUTMIX = 1.0  # alpha; 0: off
_C.AUG.CUTMIX_MINMAX = None  # [smallest, largest] side of the cut as a share of the photo's, instead of alpha
_C.AUG.MIXUP_PROB = 1.0
_C.AUG.MIXUP_SWITCH_PROB = 0.5  # of CutMix where both are on
_C.AUG.MIXUP_MODE = "batch"  # batch, pair, elem: what shares one lambda

# ---------------------------------------------------------------- the rest
_C.TEST = CN()
_C.TEST.CROP = True  # resize to 256/224 of the size and cut the middle; False: squash the whole photo
_C.TEST.IMG_SIZE = 0  # size photos are scored at, for models that take any (not Swin); 0: DATA.IMG_SIZE
_C.TEST.TTA = "none"  # views averaged by test.py and predict: flips (4), turns (4 quarter turns), all (8); none
# How several labels are decided: threshold; argmax (one label); combination (the likeliest set seen in training, labels
# taken as independent); powerset (the likeliest set by a regression on all labels, fitted on the validation photos).
_C.TEST.DECIDE_BY = "threshold"
_C.AMP = CN()
_C.AMP.OPT_LEVEL = "auto"  # O0: fp32; O1, O2: mixed precision; auto: O1 on a GPU, O0 on a CPU
_C.AMP.BACKEND = "native"  # native; apex: NVIDIA's
_C.AMP.DTYPE = "auto"  # of native: bf16, fp16; auto: bf16 where the card has it
_C.DIST = CN()
_C.DIST.BACKEND = "auto"  # gloo, nccl; auto: nccl on a GPU
_C.DIST.TIMEOUT_SECONDS = 600  # a rank that is silent for so long is given up
_C.OUTPUT = "output"
_C.TAG = "default"
_C.SAVE_FREQ = 1  # epochs between writings of last.pth
_C.PRINT_FREQ = 10  # updates between log lines
_C.SEED = 0


def get_defaults() -> CN:
    """A fresh copy of the tree."""
    return _C.clone()
