"""main.py for real: a run and its files, stopping and going on to the same bits, every knob, every refusal."""

import csv
import functools
import re
import shutil

import pytest
import torch
from PIL import Image

import main
from tools.checkpoint.store import read


def weights(folder, name="last.pth", key="model"):
    return read(folder / name)[key]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def history(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_leaves_what_it_promises(trained):
    assert {p.name for p in trained.iterdir()} >= {
        "best.pth",
        "last.pth",
        "config.yaml",
        "log.txt",
        "metrics.csv",
        "curves.png",
        "run.json",
    }
    assert not [p for p in trained.iterdir() if p.suffix == ".tmp"]
    rows = history(trained)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["5", "10"]
    best = read(trained / "best.pth")
    assert "optimizer" not in best
    assert best["classes"] == ["000001", "000010", "000100", "001000", "010000", "100000"]
    assert best["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    assert best["targets"] == "multi"
    assert float(max(rows, key=lambda r: float(r["macro_f1"]))["macro_f1"]) == pytest.approx(
        best["scores"]["macro_f1"], abs=1e-6
    )
    assert Image.open(trained / "curves.png").size[0] > 600
    log = (trained / "log.txt").read_text()
    pattern = r"Train: \[1/2\]\[1/5\] eta \d:\d\d:\d\d lr \S+ time \S+ loss \S+ \(\S+\) norm \S+ mem \d+MB\n"
    assert re.search(pattern, log)
    assert "8 images per update, 5 updates per epoch\n" in log
    assert "peak learning rate 0.0005 = TRAIN.BASE_LR 0.032 x 8 / 512\n" in log
    *_, folder, score_it, look = log.splitlines()
    assert folder.endswith(f"run folder: {trained}")
    assert score_it.endswith(f"python test.py --resume {trained / 'best.pth'}")
    assert look.endswith(f"python visual.py --resume {trained / 'best.pth'} --examples 6")


@pytest.mark.parametrize(
    "opts",
    [
        ["DATA.TARGETS", "multi", "TRAIN.EMA_DECAY", "0.9"],
        ["TRAIN.ACCUMULATION_STEPS", "2"],
        ["AMP.OPT_LEVEL", "O1", "AMP.DTYPE", "fp16"],
    ],
    ids=["multi-ema", "single-accumulation", "fp16"],
)
@pytest.mark.parametrize("stop", ["1", "3", "4"])
def test_stopped_anywhere_and_resumed_is_never_stopped(train, opts, stop):
    code, whole = train("whole", *opts)
    assert code == 0
    assert train("cut", *opts, "TRAIN.MAX_STEPS", stop)[0] == 0
    assert read(whole.parent / "cut" / "last.pth")["step"] == int(stop)
    code, cut = train("cut", *opts)
    assert code == 0
    for key in ("model", "model_ema"):
        assert equal(weights(whole, key=key), weights(cut, key=key))
    assert weights(whole, key="scaler") == weights(cut, key="scaler")
    assert equal(weights(whole, "best.pth"), weights(cut, "best.pth"))
    assert history(whole) == history(cut)
    states = [read(folder / "last.pth")["optimizer"]["state"] for folder in (whole, cut)]
    assert all(equal(states[0][i], states[1][i]) for i in states[0])


def test_workers_and_cache_change_no_bit_of_a_run(train):
    _, plain = train("plain", "TRAIN.EPOCHS", "3")
    for tag, opts in (("workers", ["DATA.NUM_WORKERS", "2"]), ("cache", ["DATA.CACHE_MODE", "full"])):
        _, other = train(tag, "TRAIN.EPOCHS", "3", *opts)
        assert equal(weights(plain), weights(other))
        assert history(plain) == history(other)


def test_accumulated_batches_are_one_batch(train):
    """4 x 2 images an update against 8 x 1: equal but for the order of sums. 42 photos: 5 updates either way."""
    opts = ["DATA.TARGETS", "multi", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0"]
    _, one = train("one", *opts)
    _, two = train("two", *opts, "DATA.BATCH_SIZE", "4", "TRAIN.ACCUMULATION_STEPS", "2")
    assert float(history(one)[0]["train_loss"]) == pytest.approx(float(history(two)[0]["train_loss"]), abs=1e-5)
    for a, b in zip(weights(one).values(), weights(two).values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_accumulation_loses_no_batch(train):
    """Five batches by two: three updates, the last of one batch."""
    _, folder = train(
        "odd", "DATA.TARGETS", "multi", "TRAIN.EPOCHS", "1", "TRAIN.ACCUMULATION_STEPS", "2", "PRINT_FREQ", "1"
    )
    assert history(folder)[0]["step"] == "3"
    assert read(folder / "last.pth")["sums"][1] == 40  # images seen


def test_fine_tuning_knobs(train, trained):
    """From pretrained weights, the stem frozen and the head fast: only what may move has moved."""
    start = weights(trained, "best.pth")
    opts = [
        "TRAIN.FREEZE",
        "[patch_embed, layers.0]",
        "TRAIN.HEAD_LR",
        "0.32",
        "TRAIN.LAYER_DECAY",
        "0.7",
        "TRAIN.MAX_STEPS",
        "2",
    ]
    code, folder = train("tuned", *opts, flags=["--pretrained", trained / "best.pth"])
    assert code == 0
    after = weights(folder)
    for key, value in after.items():
        assert torch.equal(value, start[key]) == key.startswith(("patch_embed.", "layers.0.")), key


@pytest.mark.parametrize(
    "opts",
    [
        ["TRAIN.LR_SCHEDULER.NAME", "linear"],
        ["TRAIN.LR_SCHEDULER.NAME", "step"],
        ["TRAIN.OPTIMIZER.NAME", "sgd"],
        ["AUG.MIXUP_MODE", "elem", "AUG.CUTMIX_MINMAX", "[0.2, 0.5]"],
        ["TRAIN.USE_CHECKPOINT", "true"],
        ["AUG.AUTO_AUGMENT", ""],
        ["MODEL.SWIN.APE", "true"],
    ],
    ids=lambda o: o[1],
)
def test_every_choice_trains(train, opts):
    code, folder = train("x", *opts, "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0")
    assert code == 0
    assert float(history(folder)[0]["train_loss"]) < 10


def test_recomputation_changes_no_weight(train):
    _, plain = train("plain", "TRAIN.EPOCHS", "1")
    _, again = train("again", "TRAIN.EPOCHS", "1", flags=["--use-checkpoint"])
    assert equal(weights(plain), weights(again))


def test_a_timm_model_trains_and_is_scored_at_its_own_size(train):
    opts = ["MODEL.TYPE", "timm", "MODEL.NAME", "tf_efficientnet_lite0", "TEST.IMG_SIZE", "64", "TRAIN.MAX_STEPS", "5"]
    code, folder = train("lite", *opts)
    folder = folder.parent.parent / "tf_efficientnet_lite0" / "lite"
    assert code == 0
    assert read(folder / "best.pth")["preprocess"] == {
        "size": 64,
        "resize": "crop",
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }


def test_square_photos_make_the_same_run_squashed_and_letterboxed(train):
    _, squash = train("squash", "DATA.RESIZE", "squash", "TRAIN.EPOCHS", "1")
    code, letterbox = train("letterbox", "DATA.RESIZE", "letterbox", "TRAIN.EPOCHS", "1")
    assert code == 0
    assert read(letterbox / "best.pth")["preprocess"]["resize"] == "letterbox"
    assert equal(weights(squash), weights(letterbox))
    assert torch.equal(*(read(folder / "best.pth")["validation"]["logits"] for folder in (squash, letterbox)))


def test_zip_mode_is_the_same_run(train, dataset, tmp_path):
    root = tmp_path / "zipped"
    for split in ("train", "val"):
        shutil.make_archive(str(root / split), "zip", dataset / split)
    _, folder = train("folders", "TRAIN.EPOCHS", "1")
    code, zipped = train("zip", "TRAIN.EPOCHS", "1", flags=["--zip", "--data-path", str(root)])
    assert code == 0
    assert equal(weights(folder), weights(zipped))


def test_eval_gives_the_logs_scores(trained, dataset, tiny, capsys):
    assert (
        main.main(["--eval", "--cfg", str(tiny), "--resume", str(trained / "last.pth"), "--data-path", str(dataset)])
        == 0
    )
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line in (trained / "log.txt").read_text()


def test_throughput(tiny, capsys):
    assert main.main(["--throughput", "--cfg", str(tiny)]) == 0
    numbers = re.search(
        r"throughput (\S+) images/s  latency per batch: p50 (\S+) ms, p95 (\S+) ms  peak memory (\d+) MiB",
        capsys.readouterr().out,
    )
    speed, p50, p95, _ = map(float, numbers.groups())
    assert p50 <= p95
    assert speed > 0


def test_resume_refuses_what_is_not_the_same_run(train, refused, tiny, dataset, trained, tmp_path):
    base = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out", "--tag", "a"]
    assert train("a", "TRAIN.MAX_STEPS", "2")[0] == 0
    before = (tmp_path / "out" / "tiny" / "a" / "last.pth").read_bytes()
    refused(main.main, [*base, "--batch-size", "16"], 2, "DATA.BATCH_SIZE 8 -> 16", "--tag", "--overwrite")
    refused(main.main, [*base, "--opts", "TRAIN.AUTO_RESUME", "false"], 2, "holds a run", "--tag")
    refused(main.main, [*base, "--tag", "c", "--resume", trained / "best.pth"], 4, "no optimizer state", "--pretrained")
    refused(main.main, [*base, "--opts", "TRAIN.BASE_LR", "0.1", "--allow-change", "TRAIN.EPOCHS"], 2, "TRAIN.BASE_LR")
    assert (tmp_path / "out" / "tiny" / "a" / "last.pth").read_bytes() == before
    assert (
        main.main([str(a) for a in [*base, "--opts", "TRAIN.BASE_LR", "0.1", "--allow-change", "TRAIN.BASE_LR"]]) == 0
    )


def test_an_allowed_change_reaches_the_optimizer(train, refused, tiny, dataset, tmp_path):
    assert train("a", "TRAIN.MAX_STEPS", "2")[0] == 0
    opts = ["TRAIN.MAX_STEPS", "3", "TRAIN.WEIGHT_DECAY", "0.5", "TRAIN.HEAD_LR", "1"]
    code, folder = train("a", *opts, flags=["--allow-change", "TRAIN.WEIGHT_DECAY", "TRAIN.HEAD_LR"])
    assert code == 0
    stored = read(folder / "last.pth")["optimizer"]
    assert {group["weight_decay"] for group in stored["param_groups"]} == {0.0, 0.5}
    assert len({group["lr_scale"] for group in stored["param_groups"]}) == 2
    assert all(float(part["step"]) == 3 for part in stored["state"].values())
    base = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out", "--tag", "a", "--opts", *opts]
    other = ["TRAIN.OPTIMIZER.NAME", "sgd", "TRAIN.MAX_STEPS", "4", "--allow-change", "TRAIN.OPTIMIZER.NAME"]
    refused(main.main, [*base, *other], 4, "does not fit this optimizer")


def test_no_run_is_lost_without_a_word(train, refused, tiny, dataset, tmp_path):
    """Neither by resuming another one in its folder, nor when its last.pth is gone."""
    for tag in ("a", "b"):
        assert train(tag, "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0")[0] == 0
    a, b = tmp_path / "out" / "tiny" / "a", tmp_path / "out" / "tiny" / "b"
    before = (b / "last.pth").read_bytes()
    base = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out", "--tag"]
    opts = ["--opts", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0"]
    refused(main.main, [*base, "b", "--resume", a / "last.pth", *opts], 2, "b holds a run", "--overwrite")
    assert (b / "last.pth").read_bytes() == before
    best = (a / "best.pth").read_bytes()
    (a / "last.pth").unlink()
    refused(main.main, [*base, "a", *opts], 2, "a holds a run", "--overwrite")
    assert (a / "best.pth").read_bytes() == best
    assert main.main([str(x) for x in (*base, "a", "--overwrite", *opts)]) == 0
    assert main.main([str(x) for x in (*base, "b", "--resume", b / "last.pth", *opts)]) == 0


def test_max_steps_counts_the_steps_of_the_run(train, capsys):
    for steps in ("2", "2", "1"):
        code, folder = train("a", "TRAIN.MAX_STEPS", steps)
        assert code == 0
        assert read(folder / "last.pth")["step"] == 2
    assert "nothing left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "spoil", "code", "words"),
    [
        ("last.pth", lambda p: p.symlink_to("/nowhere/x"), 4, "is a link"),
        ("last.pth", lambda p: p.symlink_to("/etc/passwd"), 4, "is a link"),
        ("last.pth", lambda p: p.mkdir(), 4, "is not a file"),
        ("config.yaml", lambda p: p.symlink_to(p.parent.parent / "precious"), 5, "is a link"),
        ("run.json", lambda p: p.symlink_to(p.parent.parent / "precious"), 5, "is a link"),
        ("log.txt", lambda p: p.symlink_to(p.parent.parent / "precious"), 5, "is a link"),
        ("curves.png", lambda p: p.mkdir(), 5, "is not a file"),
        ("metrics.csv", lambda p: p.mkdir(), 5, "is not a file"),
        ("metrics.csv", lambda p: p.write_text("epoch;step\n0;1\n"), 5, "cannot be continued"),
    ],
)
def test_a_run_writes_its_own_plain_files_only(train, refused, tiny, dataset, tmp_path, name, spoil, code, words):
    _, folder = train("a", "TRAIN.MAX_STEPS", "1")
    (folder.parent / "precious").write_text("precious")
    (folder / name).unlink(missing_ok=True)
    spoil(folder / name)
    argv = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out", "--tag", "a"]
    refused(main.main, [*argv, "--opts", "TRAIN.MAX_STEPS", "2"], code, name, words)
    assert (folder.parent / "precious").read_text() == "precious"


def test_a_finished_run_says_so(trained, tiny, dataset, capsys):
    before = (trained / "last.pth").stat().st_mtime_ns
    arguments = [
        "--cfg",
        tiny,
        "--data-path",
        dataset,
        "--output",
        trained.parent.parent,
        "--opts",
        "DATA.TARGETS",
        "multi",
    ]
    assert main.main([str(a) for a in arguments]) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert (trained / "last.pth").stat().st_mtime_ns == before


def test_a_bad_photo_stops_the_run_with_its_name(refused, tiny, dataset, tmp_path):
    own = shutil.copytree(dataset, tmp_path / "own", ignore=shutil.ignore_patterns("*.json"))
    victim = next((own / "train" / "000001").iterdir())
    victim.write_bytes(victim.read_bytes()[:500])
    arguments = ["--cfg", tiny, "--data-path", own, "--output", tmp_path / "out", "--opts", "DATA.NUM_WORKERS", "1"]
    refused(main.main, arguments, 3, victim.name)


def test_nan_stops_before_it_reaches_the_weights(refused, tiny, dataset, tmp_path):
    arguments = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out"]
    extra = ["--opts", "TRAIN.BASE_LR", "1e6", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.CLIP_GRAD", "0", "TRAIN.MIN_LR", "1"]
    refused(main.main, arguments + extra, 6, "not finite", "TRAIN.BASE_LR")


def test_print_config_shows_sources_and_starts_nothing(tiny, capsys, tmp_path):
    assert main.main(["--cfg", str(tiny), "--output", str(tmp_path / "o"), "--print-config", "--local_rank", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split(":")[0]: line.split("# ")[1] for line in lines}
    assert rows["OUTPUT"] == "--output"
    assert rows["TRAIN.EPOCHS"] == str(tiny)
    assert rows["SEED"] == "default"
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("no_compiler")
def test_compiling_that_cannot_work_is_left_out_with_a_word(train):
    """No C++ compiler: the same bits as a run that never asked for it."""
    (code, plain), (fallen_code, fallen) = train("plain"), train("fallen", "TRAIN.COMPILE", "true")
    assert (code, fallen_code) == (0, 0)
    assert "TRAIN.COMPILE: torch.compile does not work here and is left out: " in (fallen / "log.txt").read_text()
    assert equal(weights(plain), weights(fallen))


def test_a_compiled_run_trains_the_same_model(train, monkeypatch):
    """Two updates within rounding of the plain ones, saved under the plain names; traced only, C++ takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    short = ("TRAIN.MAX_STEPS", "2", "MODEL.DROP_PATH_RATE", "0.5", "TRAIN.EMA_DECAY", "0.9", "TRAIN.FREEZE", "[norm]")
    (code, plain), (compiled_code, fast) = train("plain", *short), train("fast", "TRAIN.COMPILE", "true", *short)
    assert (code, compiled_code) == (0, 0)
    assert "TRAIN.COMPILE: the forward pass of training is compiled" in (fast / "log.txt").read_text()
    assert weights(plain).keys() == weights(fast).keys()
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(fast)[name], tensor, atol=1e-3, rtol=1e-2, msg=name)
    torch.compiler.reset()
