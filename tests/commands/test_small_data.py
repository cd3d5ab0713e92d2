"""A handful of photos, and labels without any: all commands answer, with dashes, wide intervals and no warning."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

import main
import test as scoring
from tools.commands import compare, score

COUNTS = {"train": (9, 5, 5), "val": (1, 0, 0), "test": (3, 1, 0)}
LABELS = ("rot", "\u00c4pfel und Birnen", "\u82f9\u679c")  # in the order of their folders


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A tree of three labels: one photo in val, none of two labels; none of one label in test."""
    root, rng = tmp_path_factory.mktemp("few"), np.random.default_rng(0)
    for split, counts in COUNTS.items():
        for label, count in zip(LABELS, counts, strict=True):
            for number in range(count):
                path = root / split / label / f"{LABELS.index(label)}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    return root


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("targets", "decide_by"), [("single", "threshold"), ("multi", "threshold"), ("multi", "powerset")]
)
def test_training_and_scoring_of_a_handful_of_photos(few, tiny, tmp_path, capsys, targets, decide_by):
    argv = ["--cfg", tiny, "--data-path", few, "--output", tmp_path, "--opts", "MODEL.NUM_CLASSES", 3]
    argv += ["DATA.TARGETS", targets, "DATA.BATCH_SIZE", 4, "TEST.DECIDE_BY", decide_by]
    assert main.main([str(word) for word in argv]) == 0
    run = tmp_path / "tiny" / "default"
    for split in ("val", "test"):
        capsys.readouterr()
        argv = ["--resume", run / "best.pth", "--data-path", few, "--split", split, "--abstain-at", "0.05"]
        assert scoring.main([str(word) for word in argv]) == 0
        out, err = capsys.readouterr()
        assert not err
        metrics = json.loads((run / split / "metrics.json").read_text(), parse_constant=pytest.fail)  # of NaN
        num_photos = sum(COUNTS[split])
        for count, entry, limits in zip(
            COUNTS[split], metrics["per_class"], metrics["intervals"]["per_class"], strict=True
        ):
            assert entry["n"] == count
            assert (entry["recall"] is None) == (limits["recall"] is None) == (count == 0)
            assert (entry["auc"] is None) == (count in (0, num_photos))
        assert f"Accuracy for {LABELS[2]}: no photos" in out
        hits = round(metrics["hit1"] * num_photos)
        if hits in (0, num_photos):
            exact = binomtest(hits, num_photos).proportion_ci(method="exact")
            assert metrics["intervals"]["hit1"] == pytest.approx([exact.low, exact.high])
    argv = [run, run / "last.pth", "--split", "val", "--data-path", few]
    assert compare.main([str(word) for word in argv]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert "+0.00 [-97.50, +97.50]  difference not significant" in out  # of one photo


@pytest.mark.filterwarnings("error")
def test_scoring_a_file_of_one_photo(tmp_path, capsys):
    truth, answers = tmp_path / "truth.csv", tmp_path / "answers.csv"
    truth.write_text("images,labels\na.jpg,rust\n")
    answers.write_text("images,decision\na.jpg,rust\n")
    assert score.main([str(answers), str(truth)]) == 0
    out, err = capsys.readouterr()
    rows = {line.split("  ")[1].strip(): line.split()[-3:] for line in out.splitlines() if line.startswith("  ")}
    assert rows["exact match"] == ["100.00", "[2.5,", "100.0]"]
    assert rows["scab"][1:] == ["-", "-"]
    assert not err
