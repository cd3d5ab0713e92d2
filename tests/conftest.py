"""Tiny real data and a tiny Swin, shared by the tests; the machine's own environment kept out of them."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & hands on a SIGINT that is ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup a SIGHUP
ROOT = Path(__file__).resolve().parent.parent
CODE_OF = {  # the course's labels and class folders, in the order of the classes
    "scab": "000001",
    "rust": "000010",
    "powdery_mildew": "000100",
    "healthy": "001000",
    "frog_eye_leaf_spot": "010000",
    "complex": "100000",
}
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the tests need no GPU, and compare with figures of a CPU
SHARED = Path(os.environ.get("PLANT_DATASET", ROOT.parent / "shared" / "data" / "plant_dataset"))
COUNTS = {"train": 42, "val": 13, "test": 14}

# A Swin of 8x8 and 4x4 grids: small enough for a run of two epochs to take a second.
TINY = """
MODEL: {NAME: tiny, PRETRAINED: none, DROP_PATH_RATE: 0.2, LABEL_SMOOTHING: 0.1,
        SWIN: {EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4], WINDOW_SIZE: 4}}
DATA: {IMG_SIZE: 32, BATCH_SIZE: 8, NUM_WORKERS: 0}
TRAIN: {EPOCHS: 2, WARMUP_EPOCHS: 0.5, BASE_LR: 3.2e-2}
"""


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="tests/reliability in full numbers, which takes minutes")


@pytest.fixture(scope="session")
def times(request):
    """(how often in `make test`, how often in `make soak`) -> how often now. Nought skips the test."""

    def choose(few: int, many: int) -> int:
        count = many if request.config.getoption("--soak") else few
        if not count:
            pytest.skip("make soak runs this")
        return count

    return choose


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    """A drawn data set in the raw course layout."""
    from data.sample.write import write_sample

    folder = tmp_path_factory.mktemp("raw") / "plant_dataset"
    write_sample(folder, seed=0, counts=COUNTS)
    return folder


@pytest.fixture(scope="session")
def dataset(raw, tmp_path_factory) -> Path:
    """The same, prepared. Tests that change it take a copy."""
    import process_dataset

    folder = tmp_path_factory.mktemp("prepared") / "dataset"
    assert process_dataset.main(["--src", str(raw), "--dst", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A config file of the tiny Swin."""
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def trained(dataset, tiny, tmp_path_factory) -> Path:
    """The run folder of a tiny Swin trained for two epochs on multi-hot targets."""
    import main

    output = tmp_path_factory.mktemp("output")
    arguments = ["--cfg", str(tiny), "--data-path", str(dataset), "--output", str(output)]
    assert main.main([*arguments, "--opts", "DATA.TARGETS", "multi"]) == 0
    return output / "tiny" / "default"


@pytest.fixture(scope="session")
def folds(tiny, dataset, tmp_path_factory):
    """The checkpoints of two folds."""
    import main

    folder = tmp_path_factory.mktemp("folds")
    arguments = ["--cfg", tiny, "--data-path", dataset, "--output", folder, "--folds", "2"]
    opts = ["--opts", "DATA.TARGETS", "multi", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0"]
    for fold in ("0", "1"):
        assert main.main([*map(str, arguments), "--fold", fold, "--tag", f"f{fold}", *opts]) == 0
    return [folder / "tiny" / f"f{fold}" / "best.pth" for fold in (0, 1)]


@pytest.fixture(scope="session")
def recipe(dataset, tiny, times) -> list[str]:
    """Flags of a run with every kind of randomness (mixup and drop path are on anyway) that saves all the time."""
    opts = {"DATA.TARGETS": "multi", "DATA.NUM_WORKERS": 1, "MODEL.DROP_RATE": 0.1, "PRINT_FREQ": 1}
    opts |= {"TRAIN.EPOCHS": times(3, 12), "TRAIN.EMA_DECAY": 0.9, "TRAIN.SAVE_EVERY_STEPS": 1}
    words = [str(word) for pair in opts.items() for word in pair]
    return ["--cfg", str(tiny), "--data-path", str(dataset), "--opts", *words]


@pytest.fixture(scope="session")
def undisturbed(recipe, tmp_path_factory) -> str:
    """What a run of the recipe comes to when nothing happens to it."""
    from runs import RUN, digest, warm

    import main

    folder = tmp_path_factory.mktemp("undisturbed")
    run = warm(folder, main.main, recipe)
    assert run.wait() == 0, run.errors
    return digest(folder / RUN)


@pytest.fixture(scope="session")
def of_two(recipe, tmp_path_factory) -> tuple[list[str], str]:
    """Flags of the same run on two ranks, and what it comes to when nothing happens to it."""
    from runs import RUN, digest, warm_ranks

    argv, folder = [*recipe, "DIST.TIMEOUT_SECONDS", "20", "--batch-size", "4"], tmp_path_factory.mktemp("two")
    assert [run.wait() for run in warm_ranks(folder, argv, argv)] == [0, 0]
    return argv, digest(folder / RUN)


@pytest.fixture
def train(tiny, dataset, tmp_path):
    """Runs main.py on the tiny Swin; returns (exit code, run folder)."""
    import main

    def call(tag, *opts, flags=()):
        arguments = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out", "--tag", tag, *flags]
        arguments += ["--opts", *opts] if opts else []
        return main.main([str(a) for a in arguments]), tmp_path / "out" / "tiny" / tag

    return call


@pytest.fixture
def refused(capsys):
    """Calls a command that must refuse: exit code, then words that its single line on stderr must hold."""

    def check(command, argv, exit_code, *words):
        capsys.readouterr()
        assert command([str(a) for a in argv]) == exit_code, capsys.readouterr().err
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        for word in words:
            assert str(word) in lines[0]

    return check


@pytest.fixture
def fault(capfd, tmp_path, monkeypatch, dataset):
    """`refused`, with what C libraries print counted too, and nothing made, touched or deleted by it.

    Runs in `tmp_path`, as somebody to whom the modes of files matter.
    """
    monkeypatch.chdir(tmp_path)

    def check(command, argv, exit_code, *words):
        capfd.readouterr()
        before = snapshot(tmp_path), snapshot(dataset)
        with without_privileges():
            code = command([str(a) for a in argv])
        err = capfd.readouterr().err
        assert code == exit_code, err
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert not [word for word in words if str(word) not in err], err
        assert (snapshot(tmp_path), snapshot(dataset)) == before

    return check


def snapshot(folder: Path) -> dict:
    """Everything under a folder: kind and mode, size, time of change."""
    return {path: (s.st_mode, s.st_size, s.st_mtime_ns) for path in folder.rglob("*") for s in [path.lstat()]}


@contextlib.contextmanager
def without_privileges():
    """Inside, this thread may open what the modes of files allow, also when root runs the tests (capabilities(7))."""
    libc, header, kept = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, kept)
    less = (ctypes.c_uint32 * 6)(*kept)
    less[0] = less[3] = 0  # the effective ones; those that are permitted can be taken back
    libc.capset(header, less)
    try:
        yield
    finally:
        libc.capset(header, kept)


@pytest.fixture
def no_compiler():
    """A machine on which torch finds no C++ compiler, as most users'."""
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}):
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    """One torch thread: equal bits whatever the machine, and no quarrel over two cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(path, content):
    """A checkpoint with whatever in it, as `save` would write it if it did not look."""
    from tools.checkpoint import store

    path.unlink(missing_ok=True)
    store.write(path, content)
    return path
