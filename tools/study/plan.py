"""A study file: the runs that it describes, each with its own config, all checked before the first one starts."""

import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.checks import check_training
from configs.keys import FIGURES, show
from configs.load import Loaded, leaves, load
from configs.yaml_reader import read_yaml
from tools.base.errors import UsageError, nearest
from tools.base.tables import find_repeated

SPLITS = ("val", "test", "train")
MAX_RUNS = 1000
_DEFAULTS: dict[str, Any] = {  # key of a study file -> its default; its type is the type of every value
    "CFG": "",
    "OPTS": {},
    "GRID": {},
    "ARMS": {},
    "SEEDS": [0],
    "FOLDS": 0,
    "BASELINE": "",
    "BY": FIGURES[0],
    "SPLIT": SPLITS[0],
}
_OWN = ("SEED", "TAG", "DATA.FOLD", "MODEL.RESUME")  # config keys that the study sets for each run
_WORDS = {str: "text", dict: "a mapping", list: "a list", int: "a number or a list"}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study: an arm with a seed and a fold.

    Attributes:
        repeat: the seed and the fold in words; the runs of an arm differ in it alone.
        argv: the arguments of main.py.
        loaded: the config that they lead to.
    """

    arm: str
    repeat: str
    argv: list[str]
    loaded: Loaded

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.loaded.run_folder


@dataclass(frozen=True)
class Study:
    """The runs of a study file.

    Attributes:
        folder: where runs and results go, `<OUTPUT>/study-<name of the study file>`.
        split: the photos that every run is scored on.
        by: the figure that arms are compared by, of `configs.keys.FIGURES`.
        arms: their names; the first is the baseline.
        runs: in the order in which they are made: all arms with one seed, then with the next.
        unit: what an arm has several of, "seed" or, with folds, "run".
    """

    folder: Path
    split: str
    by: str
    arms: list[str]
    runs: list[PlannedRun]
    unit: str


def read_study(path: Path, overrides: Iterable[tuple[str, object, str]] = ()) -> Study:
    """The study in a YAML file, see docs/studies.md.

    Args:
        overrides: (config key, value, flag) of the command line, for all runs; the keys of arms prevail.

    Raises:
        UsageError: for a file that cannot be read, for unknown keys and wrong values in it, and for an arm with a
            config that main.py would refuse.
    """
    given = _check(path, read_yaml(path))
    cfg = path.parent / given["CFG"]
    shared = _settings(path, "OPTS", given["OPTS"]) | {key: value for key, value, _ in overrides}
    arms = _arms(path, given)
    names = list(arms)
    first = _load(f"{path}, arm {names[0]}", cfg, to_words(shared | arms[names[0]]))
    folder = Path(first.config.OUTPUT, f"study-{_folder_name(path.stem)}")
    baseline = given["BASELINE"] or names[0]
    if baseline not in arms:
        raise UsageError(f"{path}: BASELINE {baseline!r} is not an arm{nearest(baseline, names)}")
    runs = []
    for seed, fold in itertools.product(given["SEEDS"], _folds(given["FOLDS"])):
        suffix = f"s{seed}" if fold is None else f"s{seed}-f{fold}"
        repeat = f"seed {seed}" if fold is None else f"seed {seed}, fold {fold}"
        own = {"SEED": seed, "OUTPUT": str(folder)}
        own |= {} if fold is None else {"DATA.FOLD": fold}
        own |= {"DATA.NUM_FOLDS": given["FOLDS"]} if isinstance(given["FOLDS"], int) and given["FOLDS"] else {}
        for arm, settings in arms.items():
            words = to_words(shared | settings | own | {"TAG": f"{_folder_name(arm)}-{suffix}"})
            loaded = _load(f"{path}, arm {arm}", cfg, words)
            runs.append(PlannedRun(arm, repeat, ["--cfg", str(cfg), "--opts", *words], loaded))
    if repeated := find_repeated(str(run.folder) for run in runs):
        raise UsageError(f"{path}: two runs would share the folder {repeated}; give the arms names that differ more")
    ordered = [baseline, *(arm for arm in names if arm != baseline)]
    return Study(folder, given["SPLIT"], given["BY"], ordered, runs, "run" if given["FOLDS"] else "seed")


def counted(number: int, unit: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {unit}{'' if number == 1 else 's'}"


def _check(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """The keys of a study file with their defaults. Raises UsageError for an unknown key or a wrong value."""
    for key, value in tree.items():
        if key not in _DEFAULTS:
            raise UsageError(f"{path}: {key} is not a key of a study{nearest(str(key), _DEFAULTS)}")
        kind = type(_DEFAULTS[key])
        if type(value) is not kind and not (key == "FOLDS" and type(value) is list):
            raise UsageError(f"{path}: {key} {show(value)} is not {_WORDS[kind]}")
    given = _DEFAULTS | tree
    if not given["CFG"]:
        raise UsageError(f"{path}: no CFG, the config that all runs start from, e.g. CFG: ../sample.yaml")
    for key, choices in (("BY", FIGURES), ("SPLIT", SPLITS)):
        if given[key] not in choices:
            raise UsageError(f"{path}: {key} {given[key]!r} is not one of {', '.join(choices)}")
    for key in ("SEEDS", "FOLDS"):
        values = given[key] if isinstance(given[key], list) else [given[key]]
        if (
            not values
            or any(type(value) is not int for value in values)
            or min(values) < 0
            or len({*values}) < len(values)
        ):
            raise UsageError(f"{path}: {key} {given[key]} is not a list of different whole numbers of 0 or more")
    return given


def _arms(path: Path, given: dict[str, Any]) -> dict[str, dict[str, object]]:
    """Name of each arm -> its config keys: every one of ARMS with every combination of GRID."""
    trees = {str(name): {} if tree is None else tree for name, tree in given["ARMS"].items()}
    named = [(name, _settings(path, f"ARMS {name}", tree)) for name, tree in trees.items()]
    named, points = named or [("", {})], _grid_points(path, given["GRID"])
    if (count := len(named) * len(points) * len(given["SEEDS"]) * len(_folds(given["FOLDS"]))) > MAX_RUNS:
        raise UsageError(f"{path}: {count:,} runs are more than {MAX_RUNS:,}; make GRID smaller")
    found = [
        (", ".join(filter(None, (name, words))), settings | point)
        for name, settings in named
        for words, point in points
    ]
    if repeated := find_repeated(name for name, _ in found):
        raise UsageError(f"{path}: two arms are called {repeated!r}")
    if len(found) < 2:
        raise UsageError(f"{path}: one arm has nothing to be compared with; add ARMS, or values to GRID")
    return dict(found)


def _grid_points(path: Path, tree: dict[str, Any]) -> list[tuple[str, dict[str, object]]]:
    """(name, config keys) of each combination of GRID; a key is called by its last part where no other has the same."""
    grid: dict[str, Any] = _settings(path, "GRID", tree)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: GRID {key} {show(values)} is not a list of values")
    if math.prod(map(len, grid.values())) > MAX_RUNS:
        raise UsageError(f"{path}: GRID has more than {MAX_RUNS:,} combinations; make it smaller")
    last = [key.rsplit(".", 1)[-1] for key in grid]
    names = [short if last.count(short) == 1 else key for key, short in zip(grid, last, strict=True)]
    return [
        (
            ", ".join(f"{name} {show(value)}" for name, value in zip(names, values, strict=True)),
            dict(zip(grid, values, strict=True)),
        )
        for values in itertools.product(*grid.values())
    ]


def _settings(path: Path, where: str, tree: object) -> dict[str, object]:
    """Dotted config key -> value of a part of the file. Raises UsageError for keys that the study itself sets."""
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: {where} {show(tree)} is not a mapping of config keys")
    settings = dict(leaves(tree))
    if taken := [key for key in settings if key in _OWN or (key == "OUTPUT" and where != "OPTS")]:
        raise UsageError(f"{path}: {where} has {taken[0]}, which the study sets for each run; see SEEDS and FOLDS")
    return settings


def _folds(folds: int | list[int]) -> list[int | None]:
    if isinstance(folds, int):
        return [*range(folds)] if folds else [None]
    return [*folds]


def to_words(settings: dict[str, object]) -> list[str]:
    """The settings as words of `--opts`. JSON is YAML; a plain name stays as it is."""
    words = []
    for key, value in settings.items():
        plain = isinstance(value, str) and re.fullmatch(r"[\w./][\w./-]*", value)
        words += [key, str(value) if plain else json.dumps(value, ensure_ascii=False)]
    return words


def _load(where: object, cfg: Path, words: list[str]) -> Loaded:
    """The config that main.py would make of the words. Raises UsageError, naming `where`, for one it would refuse."""
    try:
        loaded = load(cfg, words)
        check_training(loaded.config)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return loaded


def _folder_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-")
