"""From a config or a checkpoint to the parts that commands use. May import every shelf; only entry points import it."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from configs.load import from_text
from data.build import batches_of, build_eval_loader, num_workers
from data.datasets import Split
from data.labels import label_name
from data.mixup import Mixer, apply_mix
from data.seeds import DROP_PATH, FORWARD, MIX, seed_of
from data.transforms import Preprocess
from models.build import build_model
from models.swin_transformer import SwinTransformer
from models.weights import load_strictly
from tools import checkpoint
from tools.amp import choose_precision
from tools.distributed import Ranks
from tools.engine import Draws, predict
from tools.errors import CheckpointError, UsageError, UserError


@dataclass
class Predictor:
    """A trained model and what it must be used with, all from one checkpoint.

    Attributes:
        classes: folder codes in the order of the logits.
        targets: "single" or "multi".
        thresholds: `[num_classes]`, of "multi" decisions.
    """

    path: Path
    sha256: str
    config: object
    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    targets: str
    thresholds: np.ndarray
    step: int
    epoch: int

    def class_index(self, name: str) -> int:
        """Index of a class given by label or code. Raises UsageError for neither."""
        labels = [label_name(code) for code in self.classes]
        if name in self.classes:
            return self.classes.index(name)
        if name in labels:
            return labels.index(name)
        raise UsageError(
            f"{name!r} is no class of {self.path}; its classes are "
            f"{', '.join(f'{c} {n}' if c != n else c for c, n in zip(self.classes, labels, strict=True))}"
        )


def load_predictor(path: Path, device: torch.device, weights: str = "ema") -> Predictor:
    """Rebuilds the model of a checkpoint, in eval mode on `device`.

    Args:
        weights: "ema" takes the averaged weights where the run kept them (what validation used), "raw" the others.

    Raises:
        CheckpointError: for whatever is wrong with the file.
    """
    content = checkpoint.read_own(path)
    try:
        config = from_text(content["config"], f"{path} (config)")
        classes, targets = tuple(content["classes"]), content["targets"]
        preprocess = Preprocess.from_dict(content["preprocess"])
        thresholds = np.array(content["thresholds"], dtype=np.float64)
        model = build_model(config.MODEL, config.DATA.IMG_SIZE, len(classes))
        tensors = content.get("model_ema") if weights == "ema" else None
        load_strictly(model, tensors or content["model"], str(path))
    except CheckpointError:
        raise
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not hang together: {error}") from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Predictor(
        path,
        digest,
        config,
        model.to(device).eval(),
        preprocess,
        classes,
        targets,
        thresholds,
        content["step"],
        content["epoch"],
    )


def predict_split(predictor: Predictor, split: Split, data, amp, ranks: Ranks, device: torch.device, watch=iter):
    """(logits, truth), `[n, num_classes]` each, of every photo of `split`, equal on every rank.

    Args:
        data, amp: nodes that say how to load and in which precision to compute; the rest is the checkpoint's.
        watch: wraps the batches, for a progress bar.
    """
    loader = build_eval_loader(
        split,
        predictor.preprocess,
        batch_size=data.BATCH_SIZE,
        workers=num_workers(data.NUM_WORKERS, ranks.world_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    precision, _ = choose_precision(amp.OPT_LEVEL, "native", amp.DTYPE, device)
    return predict(predictor.model, watch(batches_of(loader)), device, precision, len(predictor.classes))


def batch_draws(
    mixer: Mixer,
    model: nn.Module,
    *,
    img_size: int,
    batch_size: int,
    accumulation: int,
    rank: int,
    world_size: int,
    seed: int,
) -> Callable[[int, int], Draws]:
    """(step, batch of the update) -> what is random about it, for this rank.

    Everything is drawn for the whole global batch of the step from (seed, step) alone, and each rank and batch takes
    its rows: so it does not matter how a global batch is cut up, nor what was drawn before.
    """
    per_batch = batch_size * world_size

    @functools.lru_cache(maxsize=1)
    def draw_step(step: int):
        rows = per_batch * accumulation
        mix = mixer.draw(rows, img_size, img_size, seed_of(seed, MIX, step)) if mixer.active else None
        generator = torch.Generator().manual_seed(seed_of(seed, DROP_PATH, step))
        keep = model.draw_drop_path(rows, generator) if isinstance(model, SwinTransformer) else None
        return mix, keep

    def draw(step: int, micro: int) -> Draws:
        mix, keep = draw_step(step)
        start = micro * per_batch + rank * batch_size
        stop = start + batch_size
        return Draws(
            mix=functools.partial(apply_mix, mix=mix.rows(start, stop))
            if mix
            else lambda images, targets: (images, targets),
            keep=None if keep is None else keep[..., start:stop],
            seed=seed_of(seed, FORWARD, step, micro, rank),
        )

    return draw


def find_checkpoint(resume: str | None, output: str | None) -> tuple[Path, str]:
    """The checkpoint a command is to use, and a line that says why that one."""
    if resume:
        return Path(resume), f"checkpoint {resume}"
    path = checkpoint.newest_run(Path(output or "output"))
    return path, f"checkpoint {path} (of the run started last; another one: --resume FILE)"
