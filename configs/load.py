"""Builds one frozen config from files, `--opts` and flags, and records the source of every value.

Precedence: defaults < BASE files < the file < `--opts` < flags. Each source changes only the keys that it sets.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

from configs.checks import check_combinations
from configs.keys import FORMER_KEYS, FORMER_VALUES, KEYS, get_defaults, show, show_former_values
from configs.values import check_value, coerce
from configs.yaml_reader import parse, read_yaml
from tools.base.errors import DataError, UsageError, nearest

MAX_FILES = 32  # of a BASE chain, each counted as often as it is named


class Loaded(NamedTuple):
    """A checked, frozen config and where each of its values came from."""

    config: CfgNode  # the yacs tree
    sources: dict[str, str]  # dotted key -> "default", a file, "--opts" or a flag

    def given(self, key: str) -> object:
        """The value of a dotted key, or None when no file, option or flag set it."""
        return flatten(self.config)[key] if self.sources[key] != "default" else None

    @property
    def run_folder(self) -> Path:
        """Folder of the run of this config."""
        return Path(self.config.OUTPUT, self.config.MODEL.NAME, self.config.TAG)

    def named_run(self, cfg: str | None) -> Path | None:
        """The run folder of --cfg; None (the newest run) without --cfg. Raises UsageError for --tag without --cfg."""
        if cfg is None and self.given("TAG") is not None:
            raise UsageError("--tag names a run of a config: give --cfg FILE with it, or --resume FILE instead")
        return self.run_folder if cfg is not None else None

    def resolve(self, train: Any) -> "Loaded":
        """The same with the values that follow from the photos: MODEL.NUM_CLASSES 0 and DATA.TARGETS auto.

        Args:
            train: the whole training split, a `data.loading.split.Split`. All folds of a split get the same values.

        Raises:
            DataError: for a single class folder, or another number of them than MODEL.NUM_CLASSES.
        """
        config, sources, folders = self.config.clone(), dict(self.sources), train.labels.folders
        num_classes = len(folders)
        if num_classes < 2:
            raise DataError(f"{train.where} has only one class folder, {folders[0]}; add the photos of another")
        if config.MODEL.NUM_CLASSES not in (0, num_classes):
            raise DataError(
                f"class mismatch: {train.where} has {num_classes} class folders ({', '.join(folders[:8])}), and "
                f"MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES} ({sources['MODEL.NUM_CLASSES']}); leave it at 0, "
                "which means as many as there are, or correct the folders"
            )
        config.defrost()
        if config.MODEL.NUM_CLASSES == 0:
            config.MODEL.NUM_CLASSES, sources["MODEL.NUM_CLASSES"] = num_classes, train.where
        if config.DATA.TARGETS == "auto":
            several = any(len(photo.classes) > 1 for photo in train.photos)
            config.DATA.TARGETS, sources["DATA.TARGETS"] = "multi" if several else "single", train.where
        config.freeze()
        return Loaded(config, sources)

    def describe(self) -> str:
        """One line per value, `KEY: value  # source`, in the order of `configs/keys.py`."""
        rows = [(f"{key}: {show(value)}", self.sources[key]) for key, value in flatten(self.config).items()]
        width = max(len(row[0]) for row in rows)
        return "\n".join(f"{row:<{width}}  # {source}" for row, source in rows)


def load(
    path: str | Path | None = None,
    opts: Sequence[str] | None = None,
    overrides: Iterable[tuple[str, object, str]] = (),
) -> Loaded:
    """Builds the config from a YAML file, `--opts` pairs and (key, value, source) triples, in rising precedence.

    Raises:
        UsageError: for a file that cannot be read, an unknown key, a value of the wrong type or out of range, or a
            combination that cannot work.
    """
    config, sources = get_defaults(), dict.fromkeys(KEYS, "default")
    for file, tree in _chain(Path(path), (), []) if path is not None else ():
        for key, value in leaves(tree):
            _set(config, key, value, str(file))
            sources[key] = str(file)
    opts = opts or ()
    if len(opts) % 2:
        raise UsageError(f"--opts takes KEY VALUE pairs, and {opts[-1]!r} has no value")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        _set(config, key, parse(text, f"--opts {key}"), "--opts", text)
        sources[key] = "--opts"
    for key, value, source in overrides:
        _set(config, key, value, source)
        sources[key] = source
    check_combinations(config)
    config.freeze()
    return Loaded(config, sources)


def check_acting(opts: Sequence[str] | None, acting: Collection[str]) -> None:
    """Raises UsageError for a key in `--opts` that has no effect on a command that scores a checkpoint."""
    for key in (opts or ())[::2]:
        if key in KEYS and key not in acting:
            raise UsageError(
                f"--opts {key} has no effect here: the checkpoint sets it; keys with an effect: {', '.join(acting)}"
            )


def from_text(text: str, where: str) -> CfgNode:
    """The config from the text in a checkpoint, with former keys translated; `where` names it in errors."""
    config, tree = get_defaults(), parse(text, where)
    if not isinstance(tree, dict):
        raise UsageError(f"{where}: the stored config is not a mapping")
    for key, value in leaves(tree):
        now = FORMER_KEYS.get(key, key)
        if now in KEYS or key not in FORMER_KEYS:
            _set(config, now, FORMER_VALUES.get(key, {}).get(show(value), value), where)
    config.freeze()
    return config


def flatten(config: CfgNode) -> dict[str, object]:
    """Dotted key -> value for every leaf of the tree."""
    return dict(leaves(config))


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of a nested mapping; a mapping below a name that is not a group is itself a value."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and _first_of_group(key):
            yield from leaves(value, key + ".")
        else:
            yield key, value


def differences(ours: CfgNode, theirs: CfgNode, ignored: Iterable[str] = ()) -> list[str]:
    """`KEY theirs -> ours` for every value that differs, except for the `ignored` keys."""
    new, old = flatten(ours), flatten(theirs)
    return [
        f"{key} {show(old[key])} -> {show(new[key])}" for key in new if key not in set(ignored) and new[key] != old[key]
    ]


def _chain(path: Path, above: tuple[Path, ...], read: list[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """(file, tree) of the BASE files of `path`, lowest precedence first, then of `path`; `read`: all files so far."""
    tree = read_yaml(path)
    real = path.resolve()
    if real in above:
        names = " -> ".join(str(p.name) for p in (*above[above.index(real) :], real))
        raise UsageError(f"config {path}: include cycle {names}")
    read.append(real)
    if len(read) > MAX_FILES:
        raise UsageError(f"config {path}: BASE leads to more than {MAX_FILES} files")
    bases = tree.pop("BASE", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        raise UsageError(f"config {path}: BASE must be a file name or a list of them")
    chain = []
    for base in filter(None, bases):
        chain += _chain(path.parent / base, (*above, real), read)
    return [*chain, (path, tree)]


def _set(config: CfgNode, key: str, value: object, where: str, text: str | None = None) -> None:
    if key not in KEYS:
        raise _unknown(key, where)
    value = coerce(key, value, KEYS[key].default, where, text)
    check_value(key, value, KEYS[key].check, where)
    *groups, leaf = key.split(".")
    node = config
    for name in groups:
        node = node[name]
    node[leaf] = value


def _first_of_group(name: str) -> str | None:
    """The first key of the group `name`; None when there is no such group."""
    return next((key for key in KEYS if key.startswith(f"{name}.")), None)


def _unknown(key: str, where: str) -> UsageError:
    if now := FORMER_KEYS.get(key):
        now = f"it is {now} now{show_former_values(key)}" if now in KEYS else now
        return UsageError(f"{key} at {where}: not a key any more; {now}")
    if first := _first_of_group(key):
        return UsageError(f"{key} at {where}: is a group of keys; give one of them, e.g. {first}")
    last = key.rsplit(".", 1)[-1]  # the right name in the wrong group is the most frequent mistake
    same = [known for known in KEYS if known.rsplit(".", 1)[-1].lower() == last.lower()]
    return UsageError(
        f"{key} at {where}: unknown key{f'; did you mean {same[0]}?' if same else nearest(key.upper(), KEYS)}"
    )
