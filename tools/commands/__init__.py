"""The commands, one file each. `run("predict", argv)` runs one; a command's help begins with its file's docstring."""

import ast
import importlib
from pathlib import Path


def summaries() -> dict[str, str]:
    """Command -> first line of its docstring, without importing it."""
    files = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    docstrings = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in files}
    return {name: (text or "").splitlines()[0] for name, text in docstrings.items()}


def run(name: str, argv: list[str] | None = None) -> int:
    """Runs the command `name` on `argv` (the process's own arguments by default) and returns its exit code."""
    return importlib.import_module(f"tools.commands.{name}").main(argv)
