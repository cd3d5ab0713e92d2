"""The house: which file may import which, where configs are read, what the heavy imports wait for."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "torchvision", "timm", "cv2", "matplotlib", "sklearn", "pytorch_grad_cam"}
# The rooms from the cellar to the roof. A file imports from its own room and from those below, never from beside it.
STOREYS = (
    ("tools.base",),
    ("configs", "models", "data"),
    ("tools.runtime",),
    ("tools.checkpoint",),
    ("tools.explain",),
    ("tools.evaluate",),
    ("tools.render",),
    ("tools.train",),
    ("tools.study",),
    ("tools.bench",),
    ("tools.commands", "tools.api"),
    ("tools.__main__", "main", "test", "visual", "process_dataset"),
)
STOREY_OF = {room: number for number, storey in enumerate(STOREYS) for room in storey}
NEVER = {"tools.render": ("models", "tools.explain"), "tools.explain": ("configs",)}
CONFIG_READERS = ("tools.train.setup", "tools.train.resume", "tools.train.preflight", "tools.train.data",
                  "tools.train.parts", "tools.evaluate.predictor", "tools.evaluate.held_out", "tools.checkpoint.find",
                  "tools.api", "tools.study.plan")  # fmt: skip
FILES = [
    *ROOT.glob("*.py"),
    *(p for folder in ("configs", "models", "data", "tools") for p in (ROOT / folder).rglob("*.py")),
]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room_of(module: str) -> str | None:
    """The room that a module lies in; None for a module of another project."""
    return next((room for room in STOREY_OF if module == room or module.startswith(room + ".")), None)


def imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_lead_down(path):
    module = module_of(path)
    if module == "tools.__init__":
        return
    own = room_of(module)
    assert own, f"{module} lies in no room"
    for name in imports(ast.parse(path.read_text())):
        room = room_of(name)
        if room and room != own:
            assert STOREY_OF[room] < STOREY_OF[own], f"{module} imports {name}"
            assert room not in NEVER.get(own, ()), f"{module} imports {name}"


def is_light(module: str) -> bool:
    """Whether a module is imported for --help, a typo or a bad YAML, and so must not wait for torch."""
    light = ("tools.commands", "configs", "tools.base.cli", "tools.base.errors", "tools.base.files")
    return "." not in module or module.startswith(light)


@pytest.mark.parametrize("path", [p for p in FILES if is_light(module_of(p))], ids=module_of)
def test_commands_import_nothing_heavy_at_the_top(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not {name.split(".")[0] for name in imports(node)} & (HEAVY | {"data", "models"})


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_few_files_see_a_config_node(path):
    module = module_of(path)
    if (
        path.name == "build.py"
        or module in CONFIG_READERS
        or module.startswith(("configs", "tools.commands", "tools.bench"))
    ):
        return
    read = [
        n
        for n in ast.walk(ast.parse(path.read_text()))
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
    from configs.keys import KEYS

    # those of MODEL.SWIN are passed on as they are, see tests/models/test_build.py
    keys = [key for key in KEYS if not key.startswith("MODEL.SWIN.")]
    source = "\n".join(p.read_text() for p in FILES if p.parent.name != "configs" or p.name == "load.py")
    for key in keys:
        name = key.rsplit(".", 1)[-1]
        assert f".{name}" in source, f"{key} does nothing"


def test_help_typo_and_bad_yaml_never_import_torch(tmp_path):
    """One process for all: a Python start is the dear part."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("TRAIN:\n\tEPOCHS: 1\n")
    probe = (
        "import sys, main, test, visual, process_dataset\n"
        "from tools.commands import baseline, sample, study\n"
        "commands = (main, test, visual, process_dataset, sample, baseline, study)\n"
        "codes = [c.main(['--help']) for c in commands]\n"
        f"codes += [main.main(['--cgf', 'x']), main.main(['--cfg', {str(bad)!r}]), test.main(['--resum', 'x'])]\n"
        f"codes += [visual.main([]), process_dataset.main(['--scr', 'x']), study.main([{str(bad)!r}])]\n"
        f"print(codes, sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert out.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2] []", out.stderr
    assert len(out.stderr.splitlines()) == 6
