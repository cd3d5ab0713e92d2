"""Every benchmark runs and prints what it should; what its figures are is not tested."""

import json
import math

import pytest

from tools.commands.bench import BENCHMARKS, main


@pytest.fixture
def run_benchmark(tmp_path, capsys):
    """Runs a benchmark for one round and returns its rows, after checking the table that it prints."""

    def run(*words):
        path = tmp_path / "rows.json"
        assert main([*map(str, words), "--rounds", "1", "--json", str(path)]) == 0, capsys.readouterr().err
        found, out = json.loads(path.read_text()), capsys.readouterr().out
        assert found["benchmark"] == words[0]
        assert [line.split(" | ")[0] for line in out.splitlines()[2:]] == [f"| {row['name']}" for row in found["rows"]]
        return found["rows"]

    return run


def test_model(run_benchmark):
    rows = run_benchmark("model", "--size", "toy", "--batch", "2")
    assert len(rows) == 2 * 2 * 3 + 2, "train and eval, together and apart, of three models; the loop"
    assert [row["bar"] for row in rows if row["bar"]] == [1.08, 1.15, 1.02, 1.05, 0.98]


def test_scoring(run_benchmark, dataset, trained):
    peer, ours, share = run_benchmark("test", *scoring_flags(dataset, trained), "--workers", 0)
    assert (peer["ratio"], share["seconds"]) == (None, None)
    assert ours["ratio"] == pytest.approx(peer["seconds"] / ours["seconds"])
    assert 0 < share["ratio"] < 1


def test_heat_maps(run_benchmark, dataset, trained):
    peer, ours, share, *maps = run_benchmark("cam", *scoring_flags(dataset, trained), "--size", "toy")
    assert ours["ratio"] == pytest.approx(peer["seconds"] / ours["seconds"])
    assert 0 < share["ratio"] < 1
    assert len(maps) == 5
    assert [float(row["note"].split()[-1]) < 1e-5 for row in maps[1:4]] == [True] * 3, "they are the same maps"


def scoring_flags(dataset, trained):
    """Four photos of the shared data set, through the shared checkpoint."""
    return ["--data-path", dataset, "--resume", trained / "best.pth", "--photos", 4, "--batch-size", 3]


def test_start(run_benchmark):
    bare, shown, imports, step = run_benchmark("start")
    assert [bare["bar"], shown["bar"], imports["bar"], step["bar"]] == [None, 0.1, None, pytest.approx(1 / 3)]
    assert bare["seconds"] < shown["seconds"] < step["seconds"], "each does what the one before it does, and more"


def test_growth(run_benchmark, tiny):
    rows = run_benchmark("growth", "--sizes", 32, 40, "--cfg", tiny)
    assert len(rows) == 2 * 3 * 2
    assert [row["bar"] for row in rows] == [None] * 6 + [0.9] * 6
    assert all(math.isfinite(row["ratio"]) for row in rows[6:])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_prints_its_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert "--rounds" in capsys.readouterr().out


@pytest.mark.parametrize("given", [False, True])
def test_loader(run_benchmark, given, dataset):
    options = ["--data-path", dataset] if given else []
    rows = run_benchmark("loader", "--photos", "8", "--workers", "0", "1", *options)
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) == 10
    assert [name for name in names if "ImageFolder" in name] == [names[0], names[5]]
    assert all((row["ratio"] is None) == ("ImageFolder" in row["name"]) for row in rows)
    assert [row["bar"] for row in rows] == [None, 1.3, None, 1.8, None, *[None] * 5]
    assert names[8] == "--cache-mode full, 1 workers"


def test_prepare(run_benchmark):
    peer, ours, command = run_benchmark("prepare", "--photos", "1")
    assert (peer["ratio"], ours["bar"]) == (None, 3.0)
    assert float(ours["note"].split("; ")[1].split()[0]) >= 50
    assert command["ratio"] > 0


def test_folders_without_photos_are_refused(tmp_path, refused):
    refused(main, ["loader", "--data-path", tmp_path, "--photos", "4"], 2, "holds 0 training photos", tmp_path)
    refused(main, ["prepare", "--data-path", tmp_path], 2, "holds no .jpg", tmp_path)
