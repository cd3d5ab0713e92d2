"""test.py, tools.score, tools.compare and tools.predict: real runs, whose files are read back by other means."""

import csv
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from conftest import CODE_OF
from PIL import Image

import main
import test as scoring
from data.loading.split import scan_split
from tools.commands import compare, predict, score
from tools.evaluate import predictor
from tools.evaluate.calibration import cross_fitted, fit
from tools.evaluate.predictor import load_predictor, predict_split
from tools.runtime.distributed import Ranks

LABELS = list(CODE_OF)


@pytest.fixture(scope="module")
def scored(trained, dataset, tmp_path_factory):
    """A run folder whose test split was scored with views and abstention."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("scored") / "tiny" / "default")
    flags = ["--tta", "flips", "--abstain-at", "0.5"]
    assert scoring.main(["--resume", str(folder / "best.pth"), "--data-path", str(dataset), *flags]) == 0
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def indicator(rows, column):
    return np.array([[label in row[column].split() for label in LABELS] for row in rows])


def test_every_overall_number_follows_from_predictions_csv(scored, raw):
    """Truth from the raw CSV, decisions and probabilities from predictions.csv, counts from scikit-learn."""
    metrics = json.loads((scored / "test" / "metrics.json").read_text())
    rows = table(scored / "test" / "predictions.csv")
    labels = {row["images"]: row["labels"] for row in table(raw / "test" / "test_label.csv")}
    assert {row["images"]: sorted(row["truth"].split()) for row in rows} == {
        name: sorted(text.split()) for name, text in labels.items()
    }
    truth, decision = indicator(rows, "truth"), indicator(rows, "decision")
    probability = np.array([[float(row[f"p_{label}"]) for label in LABELS] for row in rows])
    assert metrics["exact"] == pytest.approx(sk.accuracy_score(truth, decision))
    assert metrics["hamming"] == pytest.approx(1 - sk.hamming_loss(truth, decision))
    assert metrics["hamming_of_nothing"] == pytest.approx(1 - truth.mean())
    for how in ("micro", "macro", "samples"):
        assert metrics[f"{how}_f1"] == pytest.approx(sk.f1_score(truth, decision, average=how, zero_division=0))
    assert metrics["mean_ap"] == pytest.approx(sk.average_precision_score(truth, probability, average="macro"))
    assert metrics["mean_auc"] == pytest.approx(sk.roc_auc_score(truth, probability, average="macro"))
    copies = [(c, row.argmax()) for row, true in zip(probability, truth, strict=True) for c in np.flatnonzero(true)]
    assert metrics["accuracy"] == pytest.approx(np.mean([a == b for a, b in copies]))
    assert metrics["ceiling"] == pytest.approx(len(rows) / len(copies))
    assert sum(entry["photos"] for entry in metrics["combinations"]) == len(rows) == 14
    confidence = np.array([float(row["confidence"]) for row in rows])
    assert confidence == pytest.approx(np.where(decision, probability, 1 - probability).prod(axis=1), abs=1e-4)
    if metrics["abstaining"]["cut"] is not None:
        answered = confidence >= metrics["abstaining"]["cut"] - 1e-6
        assert metrics["abstaining"]["coverage"] == pytest.approx(answered.mean())
    for name in ("confusion.png", "pr_curves.png", "reliability.png"):
        assert Image.open(scored / "test" / name).size[0] > 300
    page = (scored / "test" / "report.html").read_text()
    assert "exact match" in page
    assert page.count("data:image/jpeg") == (decision != truth).any(axis=1).sum()


def test_a_signal_while_the_model_is_built_is_not_the_files_fault(trained, dataset, tmp_path, monkeypatch, capsys):
    build = predictor.build_model

    def build_under_fire(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return build(*args, **options)

    monkeypatch.setattr(predictor, "build_model", build_under_fire)
    arguments = ["--resume", trained / "best.pth", "--data-path", dataset, "--to", tmp_path]
    assert scoring.main([str(argument) for argument in arguments]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "error: ended by SIGTERM\n"


def test_two_checkpoints_average_their_logits_and_views(scored, dataset, tmp_path, capsys):
    """A checkpoint averaged with itself gives the same predictions; more views give others."""
    flags = ["--data-path", str(dataset), "--split", "test"]
    best = str(scored / "best.pth")
    for to, resume, extra in (("one", [best], []), ("two", [best, best], []), ("all", [best], ["--tta", "all"])):
        assert scoring.main(["--resume", *resume, *flags, "--to", str(tmp_path / to), *extra]) == 0
    one, two, views = (table(tmp_path / name / "predictions.csv") for name in ("one", "two", "all"))
    assert [row["p_rust"] for row in one] == [row["p_rust"] for row in two]
    assert [row["p_rust"] for row in one] != [row["p_rust"] for row in views]
    capsys.readouterr()
    assert compare.main([best, str(tmp_path / "all" / "predictions.csv"), "--data-path", str(dataset)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "14 photos"
    assert out[2].split()[1:4] == ["8", "0.0005", "1"]  # images per update, peak learning rate, epochs
    metrics = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert out[3].split()[4] == f"{100 * metrics['exact']:.2f}"


def test_decide_chooses_how_labels_are_decided(scored, dataset, tmp_path):
    for how in ("argmax", "combination"):
        to = tmp_path / how
        arguments = ["--resume", scored / "best.pth", "--data-path", dataset, "--decide", how, "--to", to]
        assert scoring.main([str(a) for a in arguments]) == 0
    assert all(len(row["decision"].split()) == 1 for row in table(tmp_path / "argmax" / "predictions.csv"))
    train = {tuple(sorted(row["truth"].split())) for row in table(tmp_path / "combination" / "predictions.csv")}
    assert train  # training and test leaves are drawn alike, so their label sets are the same
    assert json.loads((tmp_path / "combination" / "metrics.json").read_text())["decide"] == "combination"


def test_snapshots_folds_and_losses_in_one_run(tiny, dataset, tmp_path, capsys):
    words = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path, "--folds", "3", "--fold", "1"]
    words = [*map(str, words), "--opts", "DATA.TARGETS", "multi", "TRAIN.BALANCE", "sampler"]
    assert main.main([*words, "TRAIN.SNAPSHOT_EPOCHS", "[1, 2]", "TRAIN.LOSS.NAME", "asymmetric"]) == 0
    epochs = sorted((tmp_path / "tiny" / "default" / "epochs").iterdir())
    assert [path.name for path in epochs] == ["epoch_001.pth", "epoch_002.pth"]
    capsys.readouterr()
    assert compare.main([*map(str, epochs), "--data-path", str(dataset), "--mean"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[3] for line in out.splitlines()[2:4]] == ["1", "2"]
    assert main.main([*words, "TRAIN.SNAPSHOT_EPOCHS", "[2]", "--overwrite"]) == 0
    assert [path.name for path in epochs[0].parent.iterdir()] == ["epoch_002.pth"]
    log = (epochs[0].parent.parent / "log.txt").read_text()
    drawn = [int(line.split()[-1]) for line in log.splitlines() if re.search(r"INFO (scab|rust|healthy) ", line)]
    assert len(drawn) == 3
    assert max(drawn) <= 2 * min(drawn)  # about equally often, though scab is the most frequent
    exact = [float(line.split()[4]) for line in out.splitlines()[2:4]]
    mean, sd = re.search(r"mean ± sd +([\d.]+) ± ([\d.]+)", out).groups()
    assert (float(mean), float(sd)) == pytest.approx((np.mean(exact), np.std(exact, ddof=1)), abs=0.02)  # as rounded


def test_folds_average_to_one_predictor_with_a_rule_fitted_on_all_of_them(folds, dataset, tmp_path):
    """Two folds: the rule is fitted on the logits of every training photo, from the model that had not seen it."""
    paths = folds
    predictor = load_predictor(paths, torch.device("cpu"))
    assert len(predictor.validation[0]) == 42  # the training photos, each once
    by_hand = fit(
        predictor.rule.unfit(),
        *(np.concatenate(p) for p in zip(*(m.validation for m in predictor.members), strict=True)),
    )
    assert (by_hand.thresholds == predictor.rule.thresholds).all()
    assert scoring.main(["--resume", *map(str, paths), "--data-path", str(dataset), "--to", str(tmp_path / "x")]) == 0
    members = [load_predictor([path], torch.device("cpu")) for path in paths]
    split = scan_split(dataset, "test", labels=predictor.label_set)
    config = predictor.members[0].config
    logits = [predict_split(m, split, config.DATA, config.AMP, Ranks(), torch.device("cpu"))[0] for m in members]
    wanted = predictor.rule.probabilities(np.mean(logits, axis=0))
    got = np.array(
        [[float(row[f"p_{label}"]) for label in LABELS] for row in table(tmp_path / "x" / "predictions.csv")]
    )
    assert got == pytest.approx(wanted, abs=1e-5)


def test_held_out_photos_are_predicted_by_the_model_that_was_not_trained_on_them(folds, dataset, tmp_path, capsys):
    """The stored validation logits of both models say which photos each of them held out."""
    device, argv = torch.device("cpu"), ["--split", "held-out", "--data-path", str(dataset), "--resume"]
    split = scan_split(dataset, "train", labels=load_predictor(folds, device).label_set)
    wanted = {}
    for member in (load_predictor([path], device) for path in folds):
        config = member.members[0].config
        logits, _ = predict_split(member, split, config.DATA, config.AMP, Ranks(), device)
        stored = member.validation[0]
        rows = [int(np.abs(logits - row).max(axis=1).argmin()) for row in stored]
        assert logits[rows] == pytest.approx(stored, abs=1e-5)
        wanted |= {split.photos[row].name: logits[row] for row in rows}
    assert scoring.main([*argv, *map(str, folds), "--to", str(tmp_path / "both")]) == 0
    rows = table(tmp_path / "both" / "predictions.csv")
    assert [row["images"] for row in rows] == [photo.name for photo in split.photos]
    assert len(rows) == len(wanted) == 42
    logits = np.array([wanted[row["images"]] for row in rows])
    answers = cross_fitted(load_predictor(folds, device).rule, logits, indicator(rows, "truth"))
    got = np.array([[float(row[f"p_{label}"]) for label in LABELS] for row in rows])
    assert got == pytest.approx(answers.probability, abs=1e-5)
    assert (indicator(rows, "decision") == answers.decision).all()
    assert "left out" not in capsys.readouterr().out
    assert scoring.main([*argv, str(folds[1])]) == 0
    assert "of 42 training photos are left out: every model was trained on them" in capsys.readouterr().out
    assert {row["images"] for row in table(folds[1].parent / "held-out" / "predictions.csv")} < wanted.keys()


def test_held_out_needs_models_of_folds_and_their_photos(folds, trained, dataset, tmp_path, refused):
    argv = ["--split", "held-out", "--resume"]
    own = shutil.copytree(dataset, tmp_path / "own", ignore=shutil.ignore_patterns("*.json"))
    next((own / "train" / "000001").iterdir()).unlink()
    refused(
        scoring.main, [*argv, trained / "best.pth", "--data-path", dataset], 2, "was not trained on a fold", "--folds"
    )
    refused(scoring.main, [*argv, folds[0], "--data-path", own], 3, "held out other photos than", "--data-path")


def test_predictions_of_other_programs_are_scored(raw, tmp_path, capsys, refused):
    """The same predictions as label names, one-hot columns and probabilities, against scikit-learn."""
    truth_file = raw / "test" / "test_label.csv"
    rows = table(truth_file)
    truth = indicator(rows, "labels")
    given = np.roll(truth, 1, axis=0)
    named = "images,labels\n" + "".join(
        f"{row['images']},{' '.join(label for label, yes in zip(LABELS, labels, strict=True) if yes)}\n"
        for row, labels in zip(rows, given, strict=True)
    )
    shares = f"image,{','.join(LABELS)}\n" + "".join(
        f"{row['images']},{','.join('0.9' if yes else '0.2' for yes in labels)}\n"
        for row, labels in zip(reversed(rows), reversed(given), strict=True)
    )
    one_hot = shares.replace("0.9", "1").replace("0.2", "0").replace("image,", "images,")
    wanted = f"exact match {100 * sk.accuracy_score(truth, given):>13.2f}".split()
    for name, text, ranked in (("named", named, False), ("one", one_hot, False), ("shares", shares, True)):
        path = tmp_path / f"{name}.csv"
        path.write_text(text)
        capsys.readouterr()
        assert score.main([str(path), str(truth_file), "--json", str(tmp_path / "x.json")]) == 0
        out = capsys.readouterr().out
        line = next(line for line in out.splitlines() if "exact match" in line)
        assert line.split()[:3] == wanted
        assert ("hit@1" in out) == ranked
        macro = sk.f1_score(truth, given, average="macro", zero_division=0)
        assert json.loads((tmp_path / "x.json").read_text())["macro_f1"] == pytest.approx(macro)
    bad = tmp_path / "bad.csv"
    for text, words in (
        (named.replace(" ", "", 1).replace("rust", "rsut", 1), "rsut"),
        (shares.replace("0.9", "1.5", 1), "1.5"),
        (shares.replace(",rust,", ",rost,"), "rust"),
        ("\n".join(named.splitlines()[:-1]) + "\n", "has no row for"),
        (named + named.splitlines()[1] + "\n", "twice"),
        ("", "images"),
        ("images,labels\n", "at least one row"),
        ("images,what\na,b\n", "neither"),
        ("images,labels\na\n", "row 2"),
    ):
        bad.write_text(text)
        refused(score.main, [bad, truth_file], 3, words)
    refused(score.main, [tmp_path / "no.csv", truth_file], 3, "no.csv")


def test_predict_takes_folders_patterns_and_files(scored, raw, tmp_path, capsys, refused):
    """The same photo gets the same prediction from a folder, a pattern and test.py, whatever its size."""
    photos = tmp_path / "orchard" / "row 1"
    photos.mkdir(parents=True)
    name = table(scored / "test" / "predictions.csv")[0]["images"]
    shutil.copy(raw / "test" / "images" / name, photos / "leaf.jpg")
    Image.fromarray(np.full((37, 90), 128, np.uint8)).save(photos / "grey.png")
    (photos / "notes.txt").write_text("not a photo")
    resume = ["--resume", str(scored / "best.pth"), "--tta", "flips"]
    assert predict.main([str(tmp_path / "orchard"), *resume, "--csv", str(tmp_path / "out.csv"), "--json", "-"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["image"].rsplit("/")[-1] for entry in entries] == ["grey.png", "leaf.jpg"]
    rows = table(tmp_path / "out.csv")
    assert [row["images"] for row in rows] == [entry["image"] for entry in entries]
    first = table(scored / "test" / "predictions.csv")[0]
    assert rows[1]["p_rust"] == first["p_rust"]
    assert rows[1]["decision"] == first["decision"] == " ".join(entries[1]["labels"])
    assert {row["unsure"] for row in rows} <= {"0", "1"}
    assert predict.main([str(photos / "*.png"), *resume]) == 0
    assert "grey.png: " in capsys.readouterr().out
    (photos / "broken.jpg").write_bytes((photos / "leaf.jpg").read_bytes()[:400])
    refused(predict.main, [photos, *resume], 3, "broken.jpg")
    capsys.readouterr()
    assert predict.main([str(photos), *resume, "--max-bad", "1"]) == 0
    captured = capsys.readouterr()
    assert "left out: image " in captured.err
    assert len(captured.out.splitlines()) == 3
    refused(predict.main, [tmp_path / "nowhere*", *resume], 3, "nowhere*", "no photo")
    refused(predict.main, [photos, *resume, "--abstain-at", "1.5"], 2, "--abstain-at")


def test_runs_that_cannot_be_compared_are_refused(scored, dataset, tmp_path, refused):
    best, data = scored / "best.pth", ["--data-path", dataset]
    lines = (scored / "test" / "predictions.csv").read_text().splitlines()
    (tmp_path / "fewer.csv").write_text("\n".join(lines[:-1]) + "\n")
    (tmp_path / "names.csv").write_text(
        "images,labels\n" + "".join(f"{line.split(',')[0]},rust\n" for line in lines[1:])
    )
    refused(compare.main, [best, tmp_path / "fewer.csv", *data], 3, "13 photos")
    refused(compare.main, [best, tmp_path / "names.csv", *data], 3, "no probabilities")
    refused(compare.main, [tmp_path / "names.csv"], 2, "true labels")
    refused(compare.main, [tmp_path / "none"], 3, "does not exist")
    refused(compare.main, [best, "--data-path", tmp_path], 3, "test")
    refused(scoring.main, ["--resume", best, *data, "--abstain-at", "-0.1"], 2, "--abstain-at")
    refused(scoring.main, ["--resume", best, *data, "--tta", "flip"], 2, "flips")
