"""Every benchmark runs and prints what it should; what its figures are is not tested."""

import re

import pytest
import timm
import torch
from conftest import CODE_OF
from safetensors.torch import save_file
from torch import nn

from tools.bench import recipes
from tools.commands.bench import BENCHMARKS, main


def test_model(run_benchmark):
    rows = run_benchmark("model", "--size", "toy", "--batch", "2")
    assert len(rows) == 2 * 2 * 2 + 2, "train and eval, together and apart, of two models; the loop"
    assert [row["ratio"] is None for row in rows] == [True, False] * 5


def test_heat_maps(run_benchmark):
    rows = run_benchmark("cam", "--size", "toy")
    assert len(rows) == 4
    assert [float(row["note"].split()[-1]) < 1e-5 for row in rows[1:3]] == [True] * 2, "they are the same maps"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_prints_its_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert "--rounds" in capsys.readouterr().out


@pytest.mark.parametrize("given", [False, True])
def test_loader(run_benchmark, given, dataset):
    options = ["--data-path", dataset] if given else ["--photos", "8"]
    rows = run_benchmark("loader", "--workers", "0", "1", *options)
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) == 6
    assert [name for name in names if "ImageFolder" in name] == [names[0], names[3]]
    assert all((row["ratio"] is None) == ("ImageFolder" in row["name"]) for row in rows)
    assert names[5] == "--cache-mode full, 1 workers"


def test_prepare(run_benchmark):
    flags = ["--photos", "1", "--linked", "5", "12", "--labels", "scab rust"]
    peer, ours, command, *linked = run_benchmark("prepare", *flags)
    assert peer["ratio"] is None
    assert [row["name"] for row in linked] == [f"process_dataset.py, {n} photos, 2 labels" for n in (5, 12)]
    assert all(20 < int(row["note"].split()[-2]) < 1000 for row in linked), "MiB"
    assert float(ours["note"].split("; ")[1].split()[0]) >= 50
    assert command["ratio"] > 0


def test_folders_without_photos_are_refused(tmp_path, refused):
    refused(main, ["loader", "--data-path", tmp_path, "--photos", "4"], 2, "holds no train/CLASS/ID.jpg", tmp_path)
    refused(main, ["prepare", "--data-path", tmp_path], 2, "holds no .jpg", tmp_path)


def test_study(run_benchmark, tmp_path):
    """Runs that agree on all photos but one; a gap of 60 points is found, and none where there is none."""
    for run, wrong in enumerate((7, 9)):
        rows = [
            f"{n}.jpg,rust,{int(n == wrong)},{int(n != wrong)},{'scab' if n == wrong else 'rust'}" for n in range(60)
        ]
        text = "\n".join(["images,truth,p_scab,p_rust,decision", *rows])
        (tmp_path / f"{run}.csv").write_text(text.replace(",0,1,", ",0.1,0.9,").replace(",1,0,", ",0.9,0.1,"))
    options = ["--seeds", 3, "--arms", 2, "--gap", 60, "--studies", 20]
    rows = run_benchmark("study", "--predictions", tmp_path / "?.csv", *options)
    assert [row["name"] for row in rows] == ["2 stored runs", "2 arms, 3 seeds, 60 points"]
    assert rows[1]["note"] == "equal arms called different: 0.0 %; found: 100.0 %"


def test_recipes(run_benchmark, dataset, tmp_path):
    """Two epochs of ours, one of timm's; fastai is not installed here."""
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), weights)
    flags = ["--data-path", dataset, "--weights", weights, "--minutes", 2, "--recipe", "PlantSwin", "timm"]
    rows = run_benchmark("recipes", *flags)
    assert [row["name"] for row in rows[::4]] == ["PlantSwin", "timm"]
    assert [row["name"] for row in rows[1:4]] == ["PlantSwin, to 85%", "PlantSwin, to 90%", "PlantSwin, to 92%"]
    for row in rows[::4]:
        assert row["seconds"] > 1
        hit1, minutes = re.fullmatch(r"ends at hit@1 ([\d.]+) after ([\d.]+) min", row["note"]).groups()
        assert 0 <= float(hit1) <= 100
        assert float(minutes) == pytest.approx(row["seconds"] / 60, abs=0.06)
    assert rows[1]["note"] in ("0 of 1 reach it", "1 of 1 reach it")


def test_hit1_of_copies_is_that_of_photos(dataset):
    """A photo with two labels is right when either is given: counted by hand over the class folders."""
    truth = {}
    for photo in sorted((dataset / "val").glob("*/*.jpg")):
        truth.setdefault(photo.name, set()).add(sorted(CODE_OF.values()).index(photo.parent.name))
    assert any(len(classes) == 2 for classes in truth.values())
    for chosen in range(6):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6))
        nn.init.zeros_(model[2].weight)
        model[2].bias.data = torch.eye(6)[chosen]
        wanted = sum(chosen in classes for classes in truth.values()) / len(truth)
        assert recipes.measure_hit1(model, dataset) == pytest.approx(wanted)


def test_recipes_need_photos_and_weights(refused):
    refused(main, ["recipes"], 2, "give --data-path", "--weights")
    words = ["recipes", "--data-path", "nosuch", "--weights", "nosuch.pth", "--recipe", "PlantSwin"]
    refused(main, words, 5, "the training of PlantSwin ended with 3 and printed: error: nosuch/train is not a folder")
