"""Trained models from checkpoints, one or several averaged, and their pass over the images of a split."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from data.build import batches_of, build_eval_loader
from data.labels import LabelSet
from data.loading.samplers import Shard
from data.loading.split import Split
from data.loading.transforms import Preprocess
from models.build import build_model
from models.swin_transformer import SwinTransformer
from models.weights import load_strictly
from tools.base.errors import CheckpointError, UsageError, is_out_of_memory, listing, nearest
from tools.checkpoint.find import stored_config
from tools.checkpoint.schema import INFERENCE
from tools.checkpoint.store import read_file
from tools.evaluate.calibration import fit
from tools.evaluate.inference import VIEWS, average_views, check_finite, predict
from tools.evaluate.rule import Answers, DecisionRule
from tools.runtime.distributed import Ranks
from tools.runtime.precision import choose_precision


@dataclass(frozen=True)
class LoadedModel:
    """A trained model with the classes, preprocessing and rule it must be used with, all from one checkpoint.

    Attributes:
        sha256: digest of the checkpoint's file.
        config: the config it was trained with.
        model: in eval mode.
        label_set: in the order of the logits.
        rule: how its logits become probabilities and labels, fitted on its validation images.
        validation: logits and truth of those images, `[n, num_classes]` each.
        data_digest: of its training images, of its validation images and, if it had any, of its soft labels.
        images_per_update: over all ranks and accumulated batches; scales its learning rate.
    """

    path: Path
    sha256: str
    config: CfgNode
    model: nn.Module
    preprocess: Preprocess
    label_set: LabelSet
    rule: DecisionRule
    validation: tuple[np.ndarray, np.ndarray]
    data_digest: tuple[str, ...]
    images_per_update: int
    step: int
    epoch: int

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return list(self.label_set.names)

    def class_index(self, name: str) -> int:
        """Index of the class with this label or folder. Raises UsageError for an unknown one."""
        for names in (self.label_set.names, self.label_set.folders):
            if name in names:
                return names.index(name)
        known = listing(self.label_set.titles, most=20)
        raise UsageError(f"{name!r} is not a class of {self.path}{nearest(name, self.labels)}; its classes are {known}")


@dataclass(frozen=True)
class Predictor:
    """One model, or several whose logits are averaged, and the rule that fits the average.

    Attributes:
        rule, validation: as in `LoadedModel`, for the averaged logits.
        tta: name of the views of an image that are averaged too (`tools.evaluate.inference.VIEWS`).
    """

    members: list[LoadedModel]
    rule: DecisionRule
    validation: tuple[np.ndarray, np.ndarray]
    tta: str

    @property
    def label_set(self) -> LabelSet:
        """The labels in the order of the logits."""
        return self.members[0].label_set

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return self.members[0].labels

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify the checkpoints, the rule and the views."""
        parts = [*(member.sha256 for member in self.members), self.rule.decide_by, self.tta]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]

    def inputs(self, image: Image.Image) -> list[Tensor]:
        """The input of each member, `[3, S, S]`, from an upright RGB image."""
        return [member.preprocess.transform()(image) for member in self.members]

    @torch.no_grad()
    def answer(self, images: Sequence[Tensor], names: Sequence[object], amp) -> Answers:
        """The answers for B photos.

        Args:
            images: `[B, 3, S, S]` per member, from `inputs`.
            names: of the photos, for the error.
            amp: config node that sets the precision.

        Raises:
            NumericsError: naming a photo for which the model's output is not finite.
        """
        device, views = next(self.members[0].model.parameters()).device, VIEWS[self.tta]
        precision, _ = choose_precision(amp.OPT_LEVEL, "native", amp.DTYPE, device)
        pairs = zip(self.members, images, strict=True)
        seen = (average_views(member.model, batch.to(device), views, precision) for member, batch in pairs)
        logits = reduce(torch.add, (each / len(self.members) for each in seen)).cpu().numpy()
        check_finite(logits, names)
        return self.rule.answer(logits)


def build_for(member: LoadedModel, size: int) -> nn.Module:
    """The model for images of `size` pixels: itself where it takes them, or a Swin of that size with its weights.

    Raises:
        UsageError: for a size that it cannot have.
    """
    model = member.model
    device = next(model.parameters()).device
    try:
        if size != member.preprocess.size and isinstance(model, SwinTransformer):
            model = build_model(member.config.MODEL, size, len(member.labels)).to(device).eval()
            model.load_state_dict(member.model.state_dict())
        elif size != member.preprocess.size:
            with torch.inference_mode():
                model(torch.zeros(1, 3, size, size, device=device))
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(f"the model does not take images of {size} pixels; give another --map-size") from None
    return model


def load_model(path: Path, device: torch.device, weights: str = "ema", decide_by: str | None = None) -> LoadedModel:
    """The model of one checkpoint, in eval mode on `device`.

    Args:
        weights: "ema" takes the moving average, which validation used, if the checkpoint has it; "raw" never.
        decide_by: replaces the value in the checkpoint's config.

    Raises:
        CheckpointError: for any error in the file.
    """
    content, sha256 = read_file(path, INFERENCE)
    try:
        config = stored_config(content, path)
        label_set = LabelSet.from_plain(content)
        validation = content["validation"]["logits"].numpy(), content["validation"]["truth"].numpy()
        size = content["preprocess"]["size"]
        model = build_model(config.MODEL, config.DATA.IMG_SIZE, len(label_set.names), test_size=size)
        tensors = content.get("model_ema") if weights == "ema" else None
        load_strictly(model, tensors or content["model"], str(path))
        return LoadedModel(
            path=path,
            sha256=sha256,
            config=config,
            model=model.to(device).eval(),
            preprocess=Preprocess.from_dict(content["preprocess"]),
            label_set=label_set,
            rule=_stored_rule(content, decide_by or config.TEST.DECIDE_BY, label_set, *validation),
            validation=validation,
            data_digest=tuple(content["data_digest"]),
            images_per_update=content["images_per_update"],
            step=content["step"],
            epoch=content["epoch"],
        )
    except (UsageError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} is inconsistent: {error}") from None


def load_predictor(
    paths: list[Path], device: torch.device, weights: str = "ema", decide_by: str | None = None, tta: str | None = None
) -> Predictor:
    """The predictor of one checkpoint, or of several.

    For several, the rule is fitted again: on their mean validation logits when they were validated on the same images,
    otherwise (folds) on all their validation logits, concatenated.

    Args:
        weights: as in `load_model`.
        decide_by, tta: replace the values in the first checkpoint's config.

    Raises:
        CheckpointError: for any error in a file, and for checkpoints of different classes or targets.
    """
    members = [load_model(path, device, weights, decide_by) for path in paths]
    first = members[0]
    for member in members[1:]:
        ours, theirs = ([*m.labels, f"targets {m.rule.targets}"] for m in (first, member))
        if ours != theirs:
            what = listing(sorted({*ours} ^ {*theirs})) or "the order of the labels"
            raise CheckpointError(
                f"{first.path} and {member.path} differ in {what}; average models of the same labels and targets"
            )
    rule, tta = first.rule, tta or first.config.TEST.TTA
    if len(members) == 1:
        return Predictor(members, rule, first.validation, tta)
    logits, truths = zip(*(member.validation for member in members), strict=True)
    if len({member.data_digest[1] for member in members}) == 1:
        validation = np.mean(logits, axis=0), truths[0]
    else:
        validation = np.concatenate(logits), np.concatenate(truths)
    return Predictor(members, fit(rule, *validation), validation, tta)


def predict_split(
    predictor: Predictor,
    split: Split,
    data,
    amp,
    ranks: Ranks,
    device: torch.device,
    watch=iter,
    parts: Sequence[Split] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """(logits, truth), `[n, num_classes]` each, of every image of `split`, equal on every rank.

    Raises:
        NumericsError: naming a photo for which the model's output is not finite.

    Args:
        data, amp: config nodes that set how to load and the precision; all else comes from the checkpoints.
        watch: wraps the batches, for a progress bar.
        parts: for every model, the photos of `split` that it predicts, by default all; each photo is in one at least.
    """
    precision, _ = choose_precision(amp.OPT_LEVEL, "native", amp.DTYPE, device)
    shard = Shard(ranks.rank, ranks.world_size)
    row_of = {photo.name: row for row, photo in enumerate(split.photos)}
    parts = parts or [split] * len(predictor.members)
    rows = [[row_of[photo.name] for photo in part.photos] for part in parts]
    num_models = np.bincount(np.concatenate(rows), minlength=len(row_of))[:, None]
    total = np.zeros((len(row_of), len(predictor.labels)), np.float32)
    truth = np.zeros(total.shape, bool)
    for member, part, own in zip(predictor.members, parts, rows, strict=True):
        batches = watch(batches_of(build_eval_loader(data, part, member.preprocess, shard=shard), device))
        views = VIEWS[predictor.tta]
        logits, truth[own] = predict(member.model, batches, device, precision, len(predictor.labels), views)
        total[own] += (logits / num_models[own]).astype(np.float32)
    check_finite(total, [split.source.locate(photo.file) for photo in split.photos])
    return total, truth


def _stored_rule(
    content: dict, decide_by: str, labels: LabelSet, logits: np.ndarray, truth: np.ndarray
) -> DecisionRule:
    """The decision rule of a checkpoint, as its last validation fitted it."""
    num_classes = len(labels.names)
    combinations = content["combinations"]
    rule = DecisionRule.unfitted(content["targets"], decide_by, combinations, num_classes, labels.exclusive)
    thresholds, temperatures = (np.array(content[key], dtype=np.float64) for key in ("thresholds", "temperatures"))
    widths = len(thresholds), len(temperatures), logits.shape[1]
    if set(widths) != {num_classes}:
        raise ValueError(f"thresholds, temperatures and validation logits are for {widths} classes, not {num_classes}")
    rule = replace(rule, thresholds=thresholds, temperatures=temperatures)
    # a checkpoint holds no powerset: it follows from the validation logits
    return fit(rule, logits, truth) if decide_by == "powerset" and len(logits) else rule
