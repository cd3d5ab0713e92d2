"""From a config or a checkpoint to the parts that commands use. May import every shelf; only entry points import it."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data.build import batches_of, build_eval_loader, num_workers
from data.labels import healthy_index, label_name
from data.loading.samplers import Shard
from data.loading.split import Split
from data.loading.transforms import Preprocess
from models.build import build_model
from models.weights import load_strictly
from tools.base.errors import CheckpointError, UsageError, UserError
from tools.checkpoint import store
from tools.checkpoint.find import stored_config
from tools.evaluate.calibration import fit
from tools.evaluate.inference import VIEWS, predict
from tools.evaluate.rule import DecisionRule
from tools.runtime.distributed import Ranks
from tools.runtime.precision import choose_precision


@dataclass(frozen=True)
class Predictor:
    """A trained model and what it must be used with, all from one checkpoint.

    Attributes:
        classes: folder codes in the order of the logits.
        rule: how its logits become probabilities and labels, fitted on its validation photos.
        validation: logits and truth of those photos, `[n, num_classes]` each.
        data_digest: of its training and its validation photos.
        images_per_update: over all ranks and accumulated batches, which scales its learning rate.
    """

    path: Path
    sha256: str
    config: object
    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    rule: DecisionRule
    validation: tuple[np.ndarray, np.ndarray]
    data_digest: tuple[str, str]
    images_per_update: int
    step: int
    epoch: int

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return [label_name(code) for code in self.classes]

    def class_index(self, name: str) -> int:
        """Index of a class given by label or code. Raises UsageError for neither."""
        if name in self.classes:
            return self.classes.index(name)
        if name in self.labels:
            return self.labels.index(name)
        raise UsageError(
            f"{name!r} is no class of {self.path}; its classes are "
            f"{', '.join(f'{c} {n}' if c != n else c for c, n in zip(self.classes, self.labels, strict=True))}"
        )


@dataclass(frozen=True)
class Ensemble:
    """One checkpoint, or several whose logits are averaged, and the rule that fits the average.

    Attributes:
        tta: name of the views of a photo that are averaged too (`tools.evaluate.inference.VIEWS`).
    """

    members: list[Predictor]
    rule: DecisionRule
    validation: tuple[np.ndarray, np.ndarray]
    tta: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Folder codes in the order of the logits."""
        return self.members[0].classes

    @property
    def labels(self) -> list[str]:
        """Their names."""
        return self.members[0].labels


def load_predictor(path: Path, device: torch.device, weights: str = "ema", decide: str | None = None) -> Predictor:
    """Rebuilds the model of a checkpoint, in eval mode on `device`.

    Args:
        weights: "ema" takes the averaged weights where the run kept them (what validation used), "raw" the others.
        decide: another way to decide than the checkpoint's config names.

    Raises:
        CheckpointError: for whatever is wrong with the file.
    """
    content = store.read_own(path)
    try:
        config = stored_config(content, path)
        classes = tuple(content["classes"])
        size = content["preprocess"]["size"]
        model = build_model(config.MODEL, config.DATA.IMG_SIZE, len(classes), test_size=size)
        tensors = content.get("model_ema") if weights == "ema" else None
        load_strictly(model, tensors or content["model"], str(path))
        return Predictor(
            path=path,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            config=config,
            model=model.to(device).eval(),
            preprocess=Preprocess.from_dict(content["preprocess"]),
            classes=classes,
            rule=_stored_rule(content, decide or config.TEST.DECIDE_BY, classes),
            validation=tuple(content["validation"][key].numpy() for key in ("logits", "truth")),
            data_digest=tuple(content["data_digest"]),
            images_per_update=content["images_per_update"],
            step=content["step"],
            epoch=content["epoch"],
        )
    except CheckpointError:
        raise
    except (UserError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} does not hang together: {error}") from None


def load_ensemble(
    paths: list[Path],
    device: torch.device,
    weights: str = "ema",
    decide: str | None = None,
    tta: str | None = None,
) -> Ensemble:
    """The checkpoints at `paths` as one predictor.

    Of several, the rule is fitted anew: on their mean validation logits when they were validated on the same photos,
    on all of them one after the other when not (folds).

    Args:
        decide, tta: other ones than the (first) checkpoint's config names.

    Raises:
        CheckpointError: for whatever is wrong with a file, or for checkpoints of different classes or targets.
    """
    members = [load_predictor(path, device, weights, decide) for path in paths]
    first = members[0]
    for member in members[1:]:
        for what, ours, theirs in (
            ("classes", first.classes, member.classes),
            ("targets", first.rule.targets, member.rule.targets),
        ):
            if ours != theirs:
                raise CheckpointError(f"{first.path} has the {what} {ours}, {member.path} has {theirs}")
    rule, tta = first.rule, tta or first.config.TEST.TTA
    if len(members) == 1:
        return Ensemble(members, rule, first.validation, tta)
    logits, truths = zip(*(member.validation for member in members), strict=True)
    if len({member.data_digest[1] for member in members}) == 1:
        validation = np.mean(logits, axis=0), truths[0]
    else:
        validation = np.concatenate(logits), np.concatenate(truths)
    return Ensemble(members, fit(rule, *validation), validation, tta)


def predict_split(
    ensemble: Ensemble, split: Split, data, amp, ranks: Ranks, device: torch.device, watch=iter
) -> tuple[np.ndarray, np.ndarray]:
    """(logits, truth), `[n, num_classes]` each, of every photo of `split`, equal on every rank.

    Args:
        data, amp: nodes that say how to load and in which precision to compute; the rest is the checkpoints'.
        watch: wraps the batches, for a progress bar.
    """
    precision, _ = choose_precision(amp.OPT_LEVEL, "native", amp.DTYPE, device)
    workers = num_workers(data.NUM_WORKERS, ranks.world_size)
    total, truth = 0, None
    for member in ensemble.members:
        loader = build_eval_loader(
            split,
            member.preprocess,
            batch_size=data.BATCH_SIZE,
            workers=workers,
            shard=Shard(ranks.rank, ranks.world_size),
        )
        batches = watch(batches_of(loader, device))
        logits, truth = predict(member.model, batches, device, precision, len(ensemble.classes), VIEWS[ensemble.tta])
        total = total + logits / len(ensemble.members)
    return total, truth


def _stored_rule(content: dict, how: str, classes: tuple[str, ...]) -> DecisionRule:
    """The decision rule of a checkpoint, as its last validation fitted it."""
    rule = DecisionRule.unfitted(content["targets"], how, content["combinations"], len(classes), healthy_index(classes))
    thresholds, temperatures = (np.array(content[key], dtype=np.float64) for key in ("thresholds", "temperatures"))
    logits, truth = (content["validation"][key].numpy() for key in ("logits", "truth"))
    widths = len(thresholds), len(temperatures), logits.shape[1]
    if set(widths) != {len(classes)}:
        raise ValueError(f"thresholds, temperatures and validation logits are for {widths} classes, not {len(classes)}")
    rule = replace(rule, thresholds=thresholds, temperatures=temperatures)
    return fit(rule, logits, truth) if how == "powerset" and len(logits) else rule  # which no checkpoint holds
