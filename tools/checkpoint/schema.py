"""The keys of a checkpoint, and for each its check and the words of the error: key -> (check, words)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Schema = Mapping[str, tuple[Callable[[Any], bool], str]]


def _whole(low: int, high: int = 2**53) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float = 1e300) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high and math.isfinite(value)


def _list(good: Callable[[Any], bool], lengths: range) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) in lengths and all(map(good, value))


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_text(k) and isinstance(v, Tensor) for k, v in value.items())


def _preprocess(value: Any) -> bool:
    parts = {
        "size": _whole(1, 4096),
        "resize": lambda v: _text(v) and v in ("squash", "crop", "letterbox"),
        "interpolation": lambda v: _text(v) and v in ("bilinear", "bicubic", "lanczos"),
        "mean": _list(_number(-1000, 1000), range(3, 4)),
        "std": _list(_number(1e-3, 1000), range(3, 4)),
    }
    return isinstance(value, Mapping) and value.keys() == parts.keys() and all(f(value[k]) for k, f in parts.items())


def _validation(value: Any) -> bool:
    if not (_tensors(value) and value.keys() == {"logits", "truth"}):
        return False
    logits, truth = value["logits"], value["truth"]
    right_types = logits.dtype == torch.float32 and truth.dtype == torch.bool
    return bool(right_types and logits.ndim == 2 and logits.shape == truth.shape)


def _group(value: Any) -> bool:
    names, numbers = (_list(good, range(10**6)) for good in (_text, _whole(0)))
    return isinstance(value, Mapping) and names(value.get("names")) and numbers(value.get("params"))


def _optimizer(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("state"), Mapping):
        return False
    return _list(_group, range(10**6))(value.get("param_groups")) and all(map(_tensors, value["state"].values()))


_CLASSES = range(2, 100_001)  # how many there may be
INFERENCE: Schema = {
    "format": (_whole(1), "a whole number"),
    "model": (lambda v: bool(v) and _tensors(v), "tensors by name"),
    "step": (_whole(0), "a whole number from 0"),
    "epoch": (_whole(0), "a whole number from 0"),
    "config": (_text, "text"),
    "classes": (_list(_text, _CLASSES), "a list of names"),  # data.labels.plain_fault checks the rest of these three
    "labels": (_list(_text, _CLASSES), "a list of names"),
    "exclusive": (_list(_whole(0), range(100_001)), "a list of indices"),
    "preprocess": (_preprocess, "size, resize, interpolation, mean and std within bounds"),
    "targets": (lambda v: _text(v) and v in ("single", "multi"), "single or multi"),
    "thresholds": (_list(_number(0, 1), _CLASSES), "a list of numbers between 0 and 1"),
    "temperatures": (_list(_number(1e-6), _CLASSES), "a list of numbers greater than 0"),
    "validation": (_validation, "logits and truth of equal size"),
    "combinations": (_list(_list(_whole(0), range(1, 100_001)), range(10**9)), "lists of class indices"),
    "data_digest": (_list(_text, range(2, 4)), "two or three digests"),
    "images_per_update": (_whole(1), "a whole number from 1"),
    "precision": (_text, "text"),
}
RESUME: Schema = {
    **INFERENCE,
    "model_ema": (_tensors, "tensors by name"),
    "optimizer": (_optimizer, "the state and groups of an optimizer"),
    "scaler": (lambda v: isinstance(v, Mapping), "the state of a loss scaler"),
    "micro_batch": (_whole(1), "a whole number from 1"),
    "best": (_number(-1, 1), "a score up to 1, or -1"),
    "sums": (_list(_number(-1e300), range(4, 5)), "four numbers"),
    "skipped": (_whole(0), "a whole number from 0"),
    "validated": (_whole(0), "a whole number from 0"),
}
