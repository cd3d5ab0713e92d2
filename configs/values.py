"""The type of a config value, and the checks that the rows of `configs.keys` use."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from tools.base.errors import UsageError, nearest


class Check(NamedTuple):  # not a dataclass: those import inspect, which --help would wait for
    """A condition on one value. Errors say "must be {words}"; `names` are the options of a choice."""

    holds: Callable[[Any], bool]
    words: str
    names: tuple[str, ...] = ()


def one_of(*names: str) -> Check:
    """One of these names."""
    return Check(lambda value: value in names, f"one of {', '.join(names)}", names)


def between(low: float, high: float) -> Check:
    """A number in [low, high]. Every number has an upper bound, because huge floats overflow in unexpected places."""
    return Check(lambda value: low <= value <= high, f"between {low:,} and {high:,}")


def zero_or(low: float, high: float) -> Check:
    """0 for "off", or a number in [low, high]."""
    return Check(lambda value: value == 0 or low <= value <= high, f"0 or between {low:,} and {high:,}")


def null_or(check: Check) -> Check:
    """null, or what `check` wants."""
    return Check(lambda value: value is None or check.holds(value), f"null or {check.words}")


def list_of(low: int, high: int, shortest: int = 1) -> Check:
    """At least `shortest` whole numbers in [low, high]."""
    return Check(
        lambda value: len(value) >= shortest and all(isinstance(v, int) and low <= v <= high for v in value),
        f"a list of whole numbers between {low:,} and {high:,}",
    )


def ordered_pair(low: float, high: float) -> Check:
    """Two numbers with low <= first <= second <= high."""
    return Check(
        lambda value: len(value) == 2 and low <= value[0] <= value[1] <= high,
        f"two numbers with {low:g} <= first <= second <= {high:g}",
    )


def channels(low: float) -> Check:
    """Nothing, or three numbers from `low` to 1000, one per colour channel."""
    return Check(
        lambda value: len(value) in (0, 3) and all(low <= v <= 1000 for v in value),
        f"empty or three numbers between {low:g} and 1000",
    )


def folder_name(longest: int) -> Check:
    """A string that is safe as the name of a folder."""
    return Check(
        lambda value: bool(re.fullmatch(rf"[A-Za-z0-9._-]{{1,{longest}}}", value)) and value.strip(".") != "",
        f"1 to {longest} letters, digits, . _ -, and not only dots",
    )


def _is_path(value: str) -> bool:
    return len(value.encode()) <= 2048 and "\0" not in value  # a lone surrogate has no encoding, so it is not a path


COUNT = between(1, 10**9)
COUNT_OR_NONE = between(0, 10**9)
RATE = between(0, 1e6)
SHARE = between(0, 1)
BELOW_ONE = Check(lambda value: 0 <= value < 1, "0 or more and less than 1")
PAIR_BELOW_ONE = Check(lambda value: len(value) == 2 and all(0 <= v < 1 for v in value), "two numbers in [0, 1)")
SHARE_RANGE = Check(
    lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= 1, "two numbers with 0 < first <= second <= 1"
)
NAMES = Check(lambda value: all(isinstance(name, str) and name for name in value), "a list of names")
PATH = Check(lambda value: value != "" and _is_path(value), "a path of 1 to 2048 bytes of UTF-8")
PATH_OR_NONE = Check(_is_path, "a path of at most 2048 bytes of UTF-8")
ANYTHING = Check(lambda _value: True, "")

# timm's policy names, checked here because timm ignores a section that it does not understand.
_DECIMAL = r"\d+(\.\d+)?"
_POLICIES = re.compile(
    rf"rand(-(m\d\d?|n\d\d?|mmax\d\d?|inc[01]|p{_DECIMAL}|mstd{_DECIMAL}|t(weights|3aw?)))*"
    rf"|augmix(-(m\d\d?|w\d\d?|d\d\d?|b[01]|a{_DECIMAL}|mstd{_DECIMAL}))*"
    rf"|(3a|originalr?|v0r?)(-mstd{_DECIMAL})*|"
)
POLICY = Check(lambda value: bool(_POLICIES.fullmatch(value)), "empty or a policy of timm, e.g. rand-m9-mstd0.5-inc1")


def check_value(key: str, value: object, check: Check, where: str) -> None:
    """Raises UsageError when `value` is not what `check` wants; `where` names the file or flag that gave it."""
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
        raise UsageError(f"{key} at {where}: {value} is not a finite number")
    if check.names and value not in check.names:
        raise UsageError(f"{key} at {where}: {value!r} is not {check.words}{nearest(str(value), check.names)}")
    bools = check is not ANYTHING and any(isinstance(v, bool) for v in numbers)  # Python counts them as 0 and 1
    try:
        good = not bools and check.holds(value)
    except (TypeError, ValueError, AttributeError):
        good = False
    if not good:
        raise UsageError(f"{key} at {where}: {value!r} must be {check.words}")


def coerce(key: str, value: Any, default: object, where: str, text: str | None = None) -> object:
    """`value` converted to the type of `default`, if the conversion is exact; a default of None takes every type.

    Args:
        text: the value as it was spelled on the command line.

    Raises:
        UsageError: for a value of another type.
    """
    kind: Any = type(default)
    given = type(value)
    if default is None:
        return value
    if kind is str and text is not None and given not in (str, list, dict):
        return text
    if (kind, given) in ((str, int), (float, int)) or (kind is int and given is float and value.is_integer()):
        return kind(value)
    if given is not kind:
        raise UsageError(f"{key} at {where}: {value!r} is not a {_TYPE_NAMES[kind]}")
    return value


_TYPE_NAMES = {int: "whole number", float: "number", bool: "truth value (true or false)", str: "text", list: "list"}
