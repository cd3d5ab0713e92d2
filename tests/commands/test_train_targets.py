"""What a run takes from its photos, MODEL.NUM_CLASSES 0 and DATA.TARGETS auto, in every file and line that shows it."""

import json
import os
import shutil

import pytest
import torch
import yaml
from conftest import ROOT

import main
from configs.load import load
from data.manifest import MANIFEST
from tools.checkpoint.store import read
from tools.commands import baseline
from tools.train.data import scan_splits

CODES = ["000001", "000010", "000100", "001000", "010000", "100000"]
AUTO = ["--opts", "DATA.TARGETS", "auto"]


@pytest.fixture
def single(dataset, tmp_path):
    """The drawn photos with one label each, without a manifest; a test may change them."""
    tree = shutil.copytree(dataset, tmp_path / "single", ignore=shutil.ignore_patterns(MANIFEST), copy_function=os.link)
    for split in tree.iterdir():
        names = [path.name for path in split.glob("*/*")]
        for path in list(split.glob("*/*")):
            if names.count(path.name) > 1:
                path.unlink()
    return tree


@pytest.fixture
def argv(tiny, tmp_path):
    """main.py's arguments for the photos `data` and the run `tag`; two updates."""

    def build(data, tag="a", *more):
        flags = ["--cfg", tiny, "--data-path", data, "--output", tmp_path / "out", "--tag", tag, *more]
        return [str(word) for word in [*flags, "--opts", "TRAIN.MAX_STEPS", "2"]]

    return build


def give_second_label(tree):
    """A photo of scab gets rust too."""
    photo = min((tree / "train" / "000001").iterdir())
    os.link(photo, tree / "train" / "000010" / photo.name)


@pytest.mark.parametrize("targets", ["single", "multi"])
def test_auto_is_the_run_that_names_its_value(argv, single, tmp_path, capsys, targets):
    """Checkpoint, config.yaml, log, --check and --print-config show the value; all weights equal the named one's."""
    if targets == "multi":
        give_second_label(single)
    for tag, value in (("auto", "auto"), ("named", targets)):
        assert main.main([*argv(single, tag), "DATA.TARGETS", value]) == 0
    auto, named = (read(tmp_path / "out" / "tiny" / tag / "last.pth") for tag in ("auto", "named"))
    assert (auto["targets"], auto["classes"]) == (targets, CODES)
    assert auto["model"].keys() == named["model"].keys()
    assert all(torch.equal(tensor, named["model"][name]) for name, tensor in auto["model"].items())
    folder = tmp_path / "out" / "tiny" / "auto"
    for text in (auto["config"], (folder / "config.yaml").read_text()):
        config = yaml.safe_load(text)
        assert (config["DATA"]["TARGETS"], config["MODEL"]["NUM_CLASSES"]) == (targets, 6)
    assert f"targets {targets}, 6 classes\n" in (folder / "log.txt").read_text()
    capsys.readouterr()
    assert main.main([*argv(single, "x", "--check"), *AUTO[1:]]) == 0
    assert f"; targets {targets}\n" in capsys.readouterr().out
    assert main.main([*argv(single, "x", "--print-config"), *AUTO[1:]]) == 0
    shown = {line.split(":")[0]: line.split(": ", 1)[1].split() for line in capsys.readouterr().out.splitlines()}
    assert shown["DATA.TARGETS"] == [targets, "#", f"{single}/train"]
    assert shown["MODEL.NUM_CLASSES"] == ["6", "#", f"{single}/train"]


def test_without_photos_the_config_is_shown_as_it_is(argv, tmp_path, capsys):
    assert main.main([*argv(tmp_path / "nowhere", "x", "--print-config"), *AUTO[1:]]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("DATA.TARGETS")]
    assert line.split() == ["DATA.TARGETS:", "auto", "#", "--opts"]


def test_all_folds_take_the_targets_of_the_whole_training_split(single, tiny):
    """One photo of 42 has two labels: each fold trains on multi-hot targets, also that which validates on it."""
    give_second_label(single)
    opts = ["DATA.DATA_PATH", str(single), "DATA.TARGETS", "auto", "DATA.NUM_FOLDS", "2", "DATA.FOLD"]
    runs = [scan_splits(load(tiny, [*opts, fold])) for fold in ("0", "1")]
    assert [sum(len(photo.classes) > 1 for photo in train.photos) for _, (train, _) in runs] in ([0, 1], [1, 0])
    assert [loaded.config.DATA.TARGETS for loaded, _ in runs] == ["multi", "multi"]


@pytest.mark.parametrize(("before", "after"), [("6", "0"), ("0", "6")])
def test_the_same_number_of_classes_is_no_change(argv, single, before, after, refused):
    """Older checkpoints hold MODEL.NUM_CLASSES 6; a named kind of targets may become auto and back, too."""
    give_second_label(single)
    targets = {"6": "multi", "0": "auto"}
    for value, steps in ((before, "2"), (after, "3")):
        opts = ["MODEL.NUM_CLASSES", value, "DATA.TARGETS", targets[value], "TRAIN.MAX_STEPS", steps]
        assert main.main([*argv(single), *opts]) == 0
    refused(main.main, [*argv(single), "DATA.TARGETS", "single"], 2, "DATA.TARGETS multi -> single")


def test_added_photos_do_not_flip_the_targets_of_a_run(argv, single, tmp_path, refused):
    assert main.main([*argv(single), *AUTO[1:]]) == 0
    before = (tmp_path / "out" / "tiny" / "a" / "last.pth").read_bytes()
    give_second_label(single)
    allowed = ["--allow-change", "DATA.TARGETS"]
    for more in ([], allowed):
        refused(main.main, [*argv(single), *AUTO[1:], *more], 4, "was made with other photos, labels or soft labels")
    for split in ("train", "val"):
        shutil.copytree(single / split / "000010", single / split / "zz", copy_function=os.link)
    refused(main.main, [*argv(single), *AUTO[1:]], 4, "has the classes ['000001'", "'zz']")
    assert (tmp_path / "out" / "tiny" / "a" / "last.pth").read_bytes() == before


def test_a_run_keeps_its_label_set(argv, dataset, tmp_path, refused):
    """Other names or exclusive labels in the same class folders: the checkpoint would say what was never learned."""
    data = tmp_path / "data"
    shutil.copytree(dataset, data, copy_function=os.link)
    manifest = json.loads((data / MANIFEST).read_text())
    assert main.main([*argv(data), "DATA.TARGETS", "multi"]) == 0
    (data / MANIFEST).unlink()  # a link to that of the other tests
    names = manifest["label_set"]["labels"]
    for key, value, words in (
        ("exclusive", [], "has the exclusive [3], the data has []"),
        ("labels", ["rot", *names[1:]], "has the labels ['scab', 'rust'"),
    ):
        changed = manifest | {"label_set": manifest["label_set"] | {key: value}}
        (data / MANIFEST).write_text(json.dumps(changed))
        more = ["DATA.TARGETS", "multi", "TRAIN.MAX_STEPS", "3"]
        refused(main.main, [*argv(data), *more], 4, words, "start another run")


@pytest.mark.parametrize("mode", [[], ["--check"]], ids=["run", "check"])
def test_what_does_not_fit_the_photos_is_refused_before_anything_is_written(argv, single, dataset, fault, mode):
    """Among it what can only be said after the photos were listed: a loss for the other kind of targets."""
    auto = ["DATA.TARGETS", "auto", "DATA.CACHE_MODE", "full", "TRAIN.LOSS.NAME"]
    fault(main.main, [*argv(dataset, "a", *mode), *auto, "ce"], 2, "ce does not fit DATA.TARGETS multi")
    fault(main.main, [*argv(single, "a", *mode), *auto, "bce"], 2, "bce does not fit DATA.TARGETS single")
    words = ("train has 6 class folders (000001, ", "MODEL.NUM_CLASSES is 7 (--opts); leave it at 0")
    fault(main.main, [*argv(dataset, "a", *mode), "MODEL.NUM_CLASSES", "7"], 3, *words)


def test_as_many_classes_as_there_are_folders(argv, single, tmp_path):
    for split in ("train", "val"):
        for code in CODES[3:]:
            shutil.rmtree(single / split / code)
    assert main.main([*argv(single), "DATA.BATCH_SIZE", "4", *AUTO[1:]]) == 0
    stored = read(tmp_path / "out" / "tiny" / "a" / "last.pth")
    assert stored["classes"] == CODES[:3]
    assert stored["model"]["head.weight"].shape[0] == 3


def test_baselines_score_the_targets_of_the_photos(tiny, dataset, tmp_path, capsys):
    outputs = []
    for targets in ("auto", "multi", "single"):
        own = tmp_path / f"{targets}.yaml"
        own.write_text(f"BASE: [{tiny}]\nDATA: {{TARGETS: {targets}}}\n")
        assert baseline.main(["--cfg", str(own), "--data-path", str(dataset)]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


SWIN = ["MODEL.SWIN.EMBED_DIM", "16", "MODEL.SWIN.DEPTHS", "[2, 2]", "MODEL.SWIN.NUM_HEADS", "[2, 4]"]
MODELS = {
    "swin": [*SWIN, "MODEL.SWIN.WINDOW_SIZE", "4"],
    "resnet": ["MODEL.TYPE", "timm", "MODEL.NAME", "test_resnet"],
    "vit": ["MODEL.TYPE", "timm", "MODEL.NAME", "test_vit"],
}


@pytest.mark.parametrize(
    ("model", "kind"), [("swin", "single"), ("swin", "multi"), ("resnet", "multi"), ("vit", "single")]
)
def test_the_fine_tuning_recipe_takes_any_photos_and_models(single, dataset, tmp_path, model, kind):
    """It decides by powerset where asked to, which has no effect on single labels."""
    flags = ["--data-path", single if kind == "single" else dataset, "--output", tmp_path / "out", "--batch-size", 8]
    opts = ["DATA.IMG_SIZE", 32, "TRAIN.EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0.5, "DATA.NUM_WORKERS", 0]
    own = ["--opts", *opts, *MODELS[model], "TEST.DECIDE_BY", "powerset"]
    arguments = ["--cfg", ROOT / "configs" / "finetune.yaml", "--pretrained", "none", *flags, *own]
    assert main.main([str(word) for word in arguments]) == 0
    (best,) = (tmp_path / "out").glob("*/finetune/best.pth")
    assert read(best)["targets"] == kind
