"""Which photos are explained: from checkpoints and splits to subjects and cases. May import every shelf."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data.boxes import Box, on_input
from data.datasets import Photo, Split
from data.images import decode, read_image
from data.transforms import Preprocess
from tools.assemble import Ensemble, Predictor, predict_split
from tools.cam_score import Case
from tools.distributed import Ranks
from tools.errors import DataError
from tools.explain import Column, Leaf, Row, Subject, batches, distinct, in_threads, rows_of
from tools.logger import progress

Boxed = tuple[Split, Photo, int, list[Box]]  # a photo, one of its classes, and the boxes of that


def named_photos(names: Sequence[str]) -> Iterator[Subject]:
    """The files that a user names, wherever they lie."""
    for name, stem in zip(names, distinct(Path(name).stem for name in names), strict=True):
        yield Subject(name, stem, lambda name=name: read_image(Path(name)))


def split_photos(
    splits: Sequence[Split], number_of_classes: int, examples: int = 0, several_first: bool = False
) -> Iterator[Subject]:
    """The photos of splits: all, or `examples` of them, every label in turn.

    Args:
        several_first: of the examples, take those with the most labels.
    """
    found = [(split, photo) for split in splits for photo in split.photos]
    if examples:
        by_class = [[one for one in found if c in one[1].classes] for c in range(number_of_classes)]
        in_turn = [group[i] for i in range(max(map(len, by_class))) for group in by_class if i < len(group)]
        found = list({(split.where, photo.file): (split, photo) for split, photo in in_turn}.values())
        if several_first:
            found.sort(key=lambda one: -len(one[1].classes))
        found = found[:examples]
    stems = distinct(Path(photo.name).stem for _, photo in found)
    yield from (_subject(split, photo, stem) for (split, photo), stem in zip(found, stems, strict=True))


def surest_mistakes(predictor: Predictor, split: Split, data, amp, tta: str, most: int) -> Iterator[Subject]:
    """At most `most` photos whose labels were decided wrongly, the most confident first.

    Args:
        data, amp: see `tools.assemble.predict_split`.
        tta: see `tools.assemble.Ensemble`.
    """
    rule, device = predictor.rule, next(predictor.model.parameters()).device
    ensemble = Ensemble([predictor], rule, predictor.validation, tta)
    watch = partial(progress, description="predicting")
    logits, truth = predict_split(ensemble, split, data, amp, Ranks(), device, watch)
    probability = rule.probabilities(logits)
    decision = rule.decide(probability)
    order = np.argsort(-rule.confidence(probability, decision), kind="stable")
    wrong = [row for row in order if (decision[row] != truth[row]).any()][:most]
    for number, row in enumerate(wrong, 1):
        photo, given = split.photos[row], tuple(np.flatnonzero(decision[row]).tolist())
        yield _subject(split, photo, f"mistake_{number:02d}_{Path(photo.name).stem}", given)


def leaf_of(subject: Subject, preprocess: Preprocess) -> Leaf:
    """The photo, decoded and made ready for the model."""
    photo = subject.read()
    return Leaf(
        subject.name,
        subject.stem,
        np.asarray(photo),
        np.asarray(preprocess.geometry()(photo)),
        preprocess.window(*photo.size),
        preprocess.transform()(photo),
        subject.truth,
        subject.given,
    )


def with_predictions(leaves: Sequence[Leaf], predictor: Predictor) -> list[Leaf]:
    """The leaves, each with the labels that the model gives it."""
    device, rule = next(predictor.model.parameters()).device, predictor.rule
    with torch.no_grad():
        logits = predictor.model(torch.stack([leaf.image for leaf in leaves]).to(device)).float().cpu().numpy()
    decision = rule.decide(rule.probabilities(logits))
    return [replace(leaf, given=tuple(row.nonzero()[0].tolist())) for leaf, row in zip(leaves, decision, strict=True)]


def explain_photos(
    subjects: Sequence[Subject],
    predictor: Predictor,
    columns: Sequence[Column],
    size: int,
    threads: int,
    *,
    target: int | None = None,
    every_label: bool = False,
    predict: bool = False,
    views: Sequence[Callable[[torch.Tensor], torch.Tensor]] = (lambda x: x,),
) -> Iterator[tuple[Leaf, list[Row]]]:
    """Every photo with its rows. The model takes `size` at a time while `threads` read the next ones.

    Args:
        target: the class to explain; None takes the most probable one.
        every_label: explain the true labels and the given ones instead.
        predict: let `predictor` give them first.
        views: see `tools.cam.explain`.
    """
    read = in_threads(partial(leaf_of, preprocess=predictor.preprocess), subjects, threads, size)
    for leaves in batches(read, size):
        if predict:
            leaves = with_predictions(leaves, predictor)
        classes = None if target is None else [[target]] * len(leaves)
        if every_label:
            classes = [sorted({*leaf.truth, *leaf.given}) for leaf in leaves]
        yield from zip(leaves, rows_of(leaves, columns, classes, views), strict=True)


def boxed_photos(splits: Sequence[Split], labels: Sequence[str], boxes: Mapping[str, list[Box]]) -> list[Boxed]:
    """Every label of a photo that has boxes.

    Raises:
        DataError: when no photo has any.
    """
    found = []
    for split in splits:
        for photo in split.photos:
            here = boxes.get(photo.name, [])
            for index, label in enumerate(labels):
                if mine := [box for box in here if box.label == label]:
                    found.append((split, photo, index, mine))
    if not found:
        where = ", ".join(split.where for split in splits)
        raise DataError(f"the boxes are of no photo in {where}; name other splits with --split")
    return found


def boxed_cases(predictor: Predictor, found: Sequence[Boxed], thorough: int) -> Iterator[Case]:
    """They are read one at a time; `thorough` of them, evenly spread, are to be measured in every way."""
    transform, preprocess = predictor.preprocess.transform(), predictor.preprocess
    for number, (split, photo, index, boxes) in enumerate(found):
        image = decode(split.source.read(photo.file), split.source.locate(photo.file))
        placed = on_input(boxes, image.size, preprocess.window(*image.size), preprocess.size)
        closely = (number + 1) * thorough // len(found) > number * thorough // len(found)
        if placed:
            yield Case(f"{split.where}/{photo.name}", transform(image), index, placed, closely)


def _subject(split: Split, photo: Photo, stem: str, given: tuple[int, ...] = ()) -> Subject:
    """A photo of a split, to be read when it is needed."""
    where = split.source.locate(photo.file)
    return Subject(where, stem, lambda: decode(split.source.read(photo.file), where), photo.classes, given)
