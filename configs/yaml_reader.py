"""Reads YAML for configs: plain data only; every error names its line and column.

PyYAML's SafeLoader follows YAML 1.1, where `010` is 8, `1:30` is 90, `yes` is true, the last of two equal keys wins and
nine levels of aliases fill the memory. Here numbers are plain decimal, truth is true/false, duplicate keys and aliases
are refused, and so are tags (`!!int x`). A config has at most 32,000 characters, which take half a second to read.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tools.base.errors import DataError, UsageError

MAX_BYTES = 32_000
MAX_DEPTH = 20


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


class _Loader(yaml.SafeLoader):
    """A SafeLoader with the scalar rules above."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str):
                raise _refusal("a key must be a name", key_node.start_mark)
            if key in lines:
                raise _refusal(f"{key} is given twice, on lines {lines[key]} and {line}", key_node.start_mark)
            lines[key] = line
        return super().construct_mapping(node, deep=deep)


def _add(tag: str, pattern: str, first: Iterable[str]) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first))


_add("null", r"~|null|Null|NULL|None|", ["", *"~nN"])  # the empty scalar is null
_add("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_add("int", r"[-+]?(?:0|[1-9][0-9]{0,17})", "-+0123456789")  # no setting needs more digits
_add(
    "float",
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+.0123456789",
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file at `path`. Raises UsageError for anything but a small, plain, UTF-8 YAML mapping."""
    from tools.base.files import read_regular  # only here: --help does not need it

    try:
        raw = read_regular(path, "config", MAX_BYTES)
    except DataError as error:
        absent = isinstance(error.__context__, FileNotFoundError)
        hint = "; the configs of this project are in configs/" if absent else ""
        raise UsageError(f"{error}{hint}") from None
    except ValueError as error:  # a NUL or a lone surrogate in the name
        raise UsageError(f"config {path} cannot be read: {error}") from None
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"config {path} is not a .yaml file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"config {path} is not UTF-8 at byte {error.start}") from None
    tree = parse(text, str(path))
    if tree is None:
        raise UsageError(f"config {path} is empty")
    if not isinstance(tree, dict):
        raise UsageError(f"config {path} holds a {type(tree).__name__}, not KEY: value lines")
    return tree


def parse(text: str, where: str) -> Any:
    """Parses YAML into plain values. Raises UsageError naming `where`, line and column."""
    if len(text) > MAX_BYTES:
        raise UsageError(f"{where} is longer than {MAX_BYTES:,} characters")
    try:
        depth = 0
        for event in yaml.parse(text, _Loader):
            if isinstance(event, yaml.AliasEvent):
                raise _refusal("aliases are not allowed", event.start_mark)
            if (tag := getattr(event, "tag", None)) is not None:
                raise _refusal(f"tag {tag} is not allowed", event.start_mark)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise _refusal(f"nested deeper than {MAX_DEPTH}", event.start_mark)
        return yaml.load(text, _Loader)
    except yaml.reader.ReaderError as error:
        raise UsageError(f"{where}: a character that YAML does not allow, at position {error.position}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UsageError(f"{where}{place}: {error.problem or error.context}") from None
