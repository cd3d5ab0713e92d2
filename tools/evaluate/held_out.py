"""The training photos that models of folds were not trained on."""

from collections.abc import Sequence
from dataclasses import replace

from data.build import build_fold, build_split
from data.labels import is_balanced_copy
from data.loading.split import Split
from tools.base.cli import HELD_OUT
from tools.base.errors import DataError, UsageError
from tools.evaluate.predictor import LoadedModel


def hold_out(members: Sequence[LoadedModel], data) -> tuple[Split, list[Split]]:
    """(split, parts): the training photos that some model was not trained on, and those of every model.

    Raises:
        UsageError: for a model that was not trained on a fold.
        DataError: for a model of other photos.
    """
    train, parts = build_split(data, "train", members[0].label_set, balanced_copies=True), []
    for member in members:
        own = member.config
        if not own.DATA.NUM_FOLDS:
            raise UsageError(f"--split {HELD_OUT}: {member.path} was not trained on a fold (main.py --folds)")
        parts.append(build_fold(train, data.DATA_PATH, own.DATA.NUM_FOLDS, own.DATA.FOLD, own.SEED)[1])
        if parts[-1].digest() != member.data_digest[1]:
            raise DataError(f"{member.path} held out other photos than {parts[-1].where}; give its --data-path")
    names = {photo.name for part in parts for photo in part.photos}
    originals = [photo for photo in train.photos if not is_balanced_copy(photo.name)]
    photos = [photo for photo in originals if photo.name in names]
    left = len(originals) - len(photos)
    note = f"{left} of {len(originals)} training photos are left out: every model was trained on them"
    notes = [*train.notes, note] if left else train.notes
    return replace(train, where=f"{train.where}, {HELD_OUT}", photos=photos, notes=notes), parts


def share_out(members: Sequence[LoadedModel], data, others: Sequence[Split]) -> list[list[Split]]:
    """The splits that each model is scored on: the photos that it held out, and for the first model `others` too.

    Args:
        others: splits that no model was trained on.

    Raises:
        UsageError: when two models held out the same photos, or as `hold_out`.
    """
    split, parts = hold_out(members, data)
    if sum(len(part.photos) for part in parts) > len(split.photos):
        raise UsageError(f"--split {HELD_OUT}: two of the checkpoints held out the same photos; give one per fold")
    return [[part, *(others if number == 0 else ())] for number, part in enumerate(parts)]
