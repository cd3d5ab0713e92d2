"""The house: which file may import which, where configs are read, what the heavy imports wait for."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHELVES = ("configs", "models", "data", "tools")
HEAVY = {"torch", "torchvision", "timm", "cv2", "matplotlib", "sklearn", "pytorch_grad_cam"}
# of tools/: where the shelves come together
MEETING_POINTS = ("assemble.py", "launch.py", "resume.py", "run_data.py", "run_parts.py", "gallery.py", "doctor.py")
FILES = [*ROOT.glob("*.py"), *(p for shelf in SHELVES for p in (ROOT / shelf).rglob("*.py"))]


def imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_entry_point(path: Path, tree: ast.Module) -> bool:
    if path.parent in (ROOT, ROOT / "tools" / "bench"):  # the rulers are one command in several files
        return True
    return any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in tree.body)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_shelves_do_not_import_each_other(path):
    tree = ast.parse(path.read_text())
    entry = is_entry_point(path, tree)
    own = path.relative_to(ROOT).parts[0]
    for name in imports(tree):
        first = name.split(".")[0]
        if first in ("main", "test", "visual", "process_dataset"):
            raise AssertionError(f"imports the entry point {first}")
        if first not in SHELVES or entry or path.name in MEETING_POINTS:
            continue
        assert first == own or name.startswith("tools.errors"), f"{own} imports {name}"
        meeting = tuple(f"tools.{point.removesuffix('.py')}" for point in MEETING_POINTS)
        assert not name.startswith(meeting), "only entry points import these"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_entry_points_import_nothing_heavy_at_the_top(path):
    tree = ast.parse(path.read_text())
    if is_entry_point(path, tree) or path.parent.name == "configs" or path.name in ("cli.py", "errors.py"):
        top = {
            name.split(".")[0]
            for node in tree.body
            for name in imports(node)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert not top & (HEAVY | {"data", "models"})


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_config_node_outside_configs_builders_and_entry_points(path):
    tree = ast.parse(path.read_text())
    if is_entry_point(path, tree) or path.parent.name == "configs" or path.name in ("build.py", *MEETING_POINTS):
        return
    read = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute)
        and n.attr.isupper()
        and isinstance(n.value, ast.Attribute)
        and n.value.attr.isupper()
    ]
    assert not read


def test_every_torch_load_is_safe_and_explicit():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {k.arg: ast.unparse(k.value) for k in node.keywords}["weights_only"] == "True", path


def test_every_config_key_is_read_somewhere():
    from configs.defaults import get_defaults
    from configs.load import flatten

    source = "\n".join(p.read_text() for p in FILES if p.parent.name != "configs" or p.name == "load.py")
    for key in flatten(get_defaults()):
        name = key.rsplit(".", 1)[-1]
        assert f".{name}" in source, f"{key} does nothing"


def test_help_typo_and_bad_yaml_never_import_torch(tmp_path):
    """One process for all: a Python start is the dear part."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("TRAIN:\n\tEPOCHS: 1\n")
    probe = (
        "import sys, main, test, visual, process_dataset, tools.sample, tools.baseline\n"
        "codes = [c.main(['--help']) for c in (main, test, visual, process_dataset, tools.sample, tools.baseline)]\n"
        f"codes += [main.main(['--cgf', 'x']), main.main(['--cfg', {str(bad)!r}]), test.main(['--resum', 'x'])]\n"
        "codes += [visual.main([]), process_dataset.main(['--scr', 'x'])]\n"
        f"print(codes, sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert out.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2] []", out.stderr
    assert len(out.stderr.splitlines()) == 5
