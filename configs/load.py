"""From files, `--opts` and flags to one frozen tree in which the source of every value is known.

Precedence: defaults < BASE files < the file < `--opts` < flags. A thing that was not given changes nothing.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from yacs.config import CfgNode

from configs.checks import check_combinations, check_value
from configs.defaults import get_defaults
from configs.yaml_reader import parse, read_yaml
from tools.base.errors import UsageError, nearest

# Keys of the course project that mean nothing here, and where their job went. The README lists them too.
DROPPED = {
    "DATA.DATASET": "the folder names the classes",
    "TRAIN.START_EPOCH": "the epoch follows from the step in the checkpoint",
    "EVAL_MODE": "use the flag --eval",
    "THROUGHPUT_MODE": "use the flag --throughput",
    "LOCAL_RANK": "torchrun sets it",
    "AMP_OPT_LEVEL": "it is AMP.OPT_LEVEL now",
}
# Names that keys of ours had in the first release -> their names now. Stored configs are read by it.
RENAMED = {
    "DATA.FOLDS": "DATA.NUM_FOLDS",
    "TEST.DECIDE": "TEST.DECIDE_BY",
    "TRAIN.LEAN": "TRAIN.SELECTIVE_CHECKPOINT",
    "TRAIN.SELECT": "TRAIN.SELECT_BY",
    "TRAIN.SNAPSHOTS": "TRAIN.SNAPSHOT_EPOCHS",
}


MAX_FILES = 32  # of a BASE chain, each counted as often as it is named


class Loaded:
    """A checked, frozen config and where each of its values came from.

    Attributes:
        config: the yacs tree.
        sources: dotted key -> "default", a file, "--opts" or a flag.
    """

    def __init__(self, config: CfgNode, sources: dict[str, str]):
        self.config = config
        self.sources = sources

    def given(self, key: str):
        """The value of a dotted key, or None when no file, option or flag set it."""
        return flatten(self.config)[key] if self.sources[key] != "default" else None

    @property
    def run_folder(self) -> Path:
        """Where the run of this config lives."""
        return Path(self.config.OUTPUT) / self.config.MODEL.NAME / self.config.TAG

    def named_run(self, cfg: str | None) -> Path | None:
        """The run folder that --cfg names; None without it, which stands for the newest run.

        Raises:
            UsageError: for a tag alone, which names nothing: another run would be taken without a word.
        """
        if cfg is None and self.given("TAG") is not None:
            raise UsageError("--tag names a run of a config: give --cfg FILE with it, or --resume FILE instead")
        return self.run_folder if cfg is not None else None

    def describe(self) -> str:
        """One line a value, `KEY: value  # source`, in the order of the defaults."""
        flat = flatten(self.config)
        rows = [(f"{key}: {_show(value)}", self.sources[key]) for key, value in flat.items()]
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
    config = get_defaults()
    sources = dict.fromkeys(flatten(config), "default")
    for file, tree in _chain(Path(path), (), []) if path is not None else ():
        _merge(config, sources, tree, str(file))
    for key, text in _pairs(opts or ()):
        _set(config, sources, key, parse(text, f"--opts {key}"), "--opts", text)
    for key, value, source in overrides:
        _set(config, sources, key, value, source)
    check_combinations(config)
    config.freeze()
    return Loaded(config, sources)


def from_text(text: str, where: str) -> CfgNode:
    """The tree whose dump was stored in a checkpoint; `where` names it in errors."""
    config = get_defaults()
    tree = parse(text, where)
    if not isinstance(tree, dict):
        raise UsageError(f"{where}: the stored config is no mapping")
    for old, new in RENAMED.items():
        _move(tree, old.split("."), new.split("."))
    _merge(config, dict.fromkeys(flatten(config), "default"), tree, where)
    config.freeze()
    return config


def _move(tree: dict, old: list[str], new: list[str]) -> None:
    """Gives the value of a nested key its new name, where the tree has the old one."""
    group = tree.get(old[0])
    if isinstance(group, dict) and old[1] in group:
        group[new[1]] = group.pop(old[1])


def flatten(node: CfgNode, prefix: str = "") -> dict[str, object]:
    """Dotted key -> value for every leaf of the tree."""
    flat: dict[str, object] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
    return flat


def differences(ours: CfgNode, theirs: CfgNode, ignored: Iterable[str] = ()) -> list[str]:
    """`KEY theirs -> ours` for every value that differs, but for the `ignored` keys."""
    new, old = flatten(ours), flatten(theirs)
    return [
        f"{key} {_show(old[key])} -> {_show(new[key])}"
        for key in new
        if key not in set(ignored) and new[key] != old[key]
    ]


def _chain(path: Path, above: tuple[Path, ...], read: list[Path]) -> list[tuple[Path, dict]]:
    """The BASE files of `path`, farthest first, then `path` itself, each with its tree; `read`: all files so far."""
    tree = read_yaml(path)
    real = path.resolve()
    if real in above:
        names = " -> ".join(str(p.name) for p in (*above[above.index(real) :], real))
        raise UsageError(f"config {path}: include cycle {names}")
    read.append(real)
    if len(read) > MAX_FILES:
        raise UsageError(f"config {path}: BASE leads to more than {MAX_FILES} files")
    bases = tree.pop("BASE", None) or []
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        raise UsageError(f"config {path}: BASE must be a file name or a list of them")
    chain = []
    for base in filter(None, bases):
        chain += _chain(path.parent / base, (*above, real), read)
    return [*chain, (path, tree)]


def _pairs(opts: Sequence[str]) -> Iterable[tuple[str, str]]:
    if len(opts) % 2:
        raise UsageError(f"--opts takes KEY VALUE pairs, and {opts[-1]!r} has no value")
    return zip(opts[::2], opts[1::2], strict=True)


def _merge(config: CfgNode, sources: dict[str, str], tree: dict, where: str, prefix: str = "") -> None:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            if not any(k.startswith(key + ".") for k in sources):
                raise _unknown(key, sources, where)
            _merge(config, sources, value, where, key + ".")
        else:
            _set(config, sources, key, value, where)


def _set(config: CfgNode, sources: dict[str, str], key: str, value, where: str, text: str | None = None) -> None:
    if key not in sources:
        raise _unknown(key, sources, where)
    *parents, leaf = key.split(".")
    node = config
    for name in parents:
        node = node[name]
    value = _coerce(key, value, _KINDS[key], where, text)
    check_value(key, value, where)
    node[leaf] = value
    sources[key] = where


def _unknown(key: str, known: Iterable[str], where: str) -> UsageError:
    if key in DROPPED:
        return UsageError(f"{key} at {where}: not a key any more; {DROPPED[key]}")
    if key in RENAMED:
        return UsageError(f"{key} at {where}: the key is called {RENAMED[key]} now")
    names = list(known)
    if any(k.startswith(key + ".") for k in names):
        return UsageError(
            f"{key} at {where}: is a group of keys; give one of them, e.g. "
            f"{next(k for k in names if k.startswith(key + '.'))}"
        )
    tail = key.rsplit(".", 1)[-1]  # a right name in the wrong group is the commonest slip
    same = [k for k in names if k.rsplit(".", 1)[-1].lower() == tail.lower()]
    hint = f"; did you mean {same[0]}?" if same else nearest(key.upper(), names)
    return UsageError(f"{key} at {where}: unknown key{hint}")


_KINDS = {key: type(value) for key, value in flatten(get_defaults()).items()}
_NULLABLE = {key for key, value in flatten(get_defaults()).items() if value is None}


def _coerce(key: str, value, kind: type, where: str, text: str | None):
    """`value` as the type of the default, when nothing is lost by it. `text` is what stood on the command line."""
    wrong = UsageError(f"{key} at {where}: {value!r} is not a {_NAMES.get(kind, 'value')}")
    if key in _NULLABLE:
        return value
    if kind is str:
        if isinstance(value, str) or (text is not None and not isinstance(value, list | dict)):
            return value if isinstance(value, str) else text
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise wrong
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
        raise wrong
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, kind):
        raise wrong
    return value


_NAMES = {int: "whole number", float: "number", bool: "truth value (true or false)", str: "text", list: "list"}


def _show(value) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else (repr(value) if value == "" else str(value))
