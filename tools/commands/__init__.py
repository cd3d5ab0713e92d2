"""The commands, one file each. `run("predict", argv)` runs one; the help of a command begins with its docstring."""

import importlib
from pathlib import Path

from tools.base import cli


def summaries() -> dict[str, str]:
    """Command -> first line of its docstring, without importing it."""
    import ast  # only here: --help of a command does not need it

    files = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    docstrings = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in files}
    return {name: (text or "").splitlines()[0] for name, text in docstrings.items()}


def run(name: str, argv: list[str] | None = None) -> int:
    """Runs the command `name` on `argv` (by default the arguments of the process) and returns its exit code."""

    @cli.command
    def import_and_run(argv: list[str]) -> int:
        code: int = importlib.import_module(f"tools.commands.{name}").main(argv)
        return code

    return import_and_run(argv)


def hint_config_key(flag: str) -> str:
    """`; write --opts KEY VALUE` for a flag that is named like a config key (`--epochs`, `--lr`), or nothing."""
    from configs.keys import KEYS

    name = flag.lstrip("-").replace("-", "_").upper()
    found = [key for key in KEYS if key.split(".")[-1] == name] or [key for key in KEYS if key.endswith("_" + name)]
    return f"; write --opts {found[0]} VALUE" if found else ""
