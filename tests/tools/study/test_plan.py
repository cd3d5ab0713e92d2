"""Study files: the runs they lead to, and what main.py makes of each; faults are one line before anything starts."""

import re

import pytest
from conftest import ROOT

from configs.load import flatten
from tools.base.errors import UsageError
from tools.commands.train import parse
from tools.study.plan import read_study
from tools.train.schedules import scale_lr

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
START = f"CFG: {ROOT}/configs/sample.yaml\n"


def read(tmp_path, text, overrides=()):
    path = tmp_path / "trial.yaml"
    path.write_text(START + text)
    return read_study(path, overrides)


def test_all_combinations_with_all_seeds_and_the_baseline_first(tmp_path):
    study = read(
        tmp_path,
        "OPTS: {TRAIN: {EPOCHS: 3}, OUTPUT: out}\n"
        "ARMS: {plain: , mixed: {AUG.MIXUP: 0.2}}\nGRID: {DATA.BATCH_SIZE: [8, 16]}\nSEEDS: [4, 7]\n"
        "BASELINE: mixed, BATCH_SIZE 8\n",
        [("DEVICE", "cpu", "--device")],
    )
    names = ["plain, BATCH_SIZE 8", "plain, BATCH_SIZE 16", "mixed, BATCH_SIZE 8", "mixed, BATCH_SIZE 16"]
    assert study.arms == [names[2], names[0], names[1], names[3]]
    assert [(run.arm, run.repeat) for run in study.runs] == [(n, f"seed {seed}") for seed in (4, 7) for n in names]
    keys = ("DATA.BATCH_SIZE", "AUG.MIXUP", "SEED", "TRAIN.EPOCHS", "DEVICE")
    assert [flatten(study.runs[7].loaded.config)[key] for key in keys] == [16, 0.2, 7, 3, "cpu"]
    assert str(study.runs[7].folder) == "out/study-trial/sample/mixed-BATCH_SIZE-16-s7"
    assert len({run.folder for run in study.runs}) == 8


@pytest.mark.parametrize(("folds", "expected"), [("3", [0, 1, 2]), ("[0, 2]", [0, 2])])
def test_every_fold_is_a_run(tmp_path, folds, expected):
    study = read(tmp_path, f"OPTS: {{DATA.NUM_FOLDS: 3}}\nGRID: {{AUG.MIXUP: [0, 0.2]}}\nFOLDS: {folds}\n")
    configs = [run.loaded.config.DATA for run in study.runs]
    assert [(data.NUM_FOLDS, data.FOLD) for data in configs] == [(3, fold) for fold in expected for _ in range(2)]
    assert study.runs[-1].repeat == "seed 0, fold 2"
    assert study.unit == "run"


def test_main_py_makes_the_same_config_of_every_value(tmp_path):
    """Values that are hard to pass on a command line: spaces, quotes, lists, null, texts like numbers."""
    values = [
        'MODEL.PRETRAINED: ["weights/a b.pth", "-x", "1e-3", "true", "it\'s: [1]", "\u00e9\u6f22"]',
        "AUG.SCALE: [[0.4, 1.0], [0.000001, 1]]",
        "AUG.CUTMIX_MINMAX: [null, [0.2, 0.8]]",
        "TRAIN.FREEZE: [[], [patch_embed, layers.0]]",
        'AUG.AUTO_AUGMENT: ["", rand-m9-mstd0.5-inc1]',
        "TRAIN.DETERMINISTIC: [true, false]",
    ]
    for value in values:
        key = value.split(":")[0]
        for run in read(tmp_path, f"GRID:\n  {value}\n").runs:
            assert run.loaded.sources[key] == "--opts"
            assert parse(run.argv)[1].config == run.loaded.config
    pretrained = [run.loaded.config.MODEL.PRETRAINED for run in read(tmp_path, f"GRID:\n  {values[0]}\n").runs]
    assert pretrained == ["weights/a b.pth", "-x", "1e-3", "true", "it's: [1]", "\u00e9\u6f22"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GIRD: {}", "GIRD is not a key of a study; did you mean GRID?"),
        ("8: {}", "8 is not a key of a study"),
        ("GRID: {AUG.MIXUP: [0, 0.2]}\nSEEDS: 3", "SEEDS 3 is not a list"),
        ("GRID: {AUG.MIXUP: [0, 0.2]}\nSEEDS: [1, 1]", "SEEDS [1, 1] is not a list of different whole numbers"),
        ("GRID: {AUG.MIXUP: [0, 0.2]}\nSEEDS: []", "SEEDS [] is not a list of different whole numbers"),
        ("GRID: {AUG.MIXUP: [0, 0.2]}\nFOLDS: -2", "FOLDS -2 is not a list of different whole numbers of 0 or more"),
        ("GRID: {AUG.MIXUP: [0, 0.2]}\nFOLDS: [1]", "DATA.FOLD 1: DATA.NUM_FOLDS is 0"),
        ("GRID: {AUG.MIXUP: [0, 0.2]}\nBY: f1", "BY 'f1' is not one of exact, hit1"),
        ("GRID: {AUG.MIXUP: [0, 0.2]}\nSPLIT: tset", "SPLIT 'tset' is not one of val, test"),
        (
            "GRID: {AUG.MIXUP: [0, 0.2]}\nBASELINE: MIXUP 0.3",
            "BASELINE 'MIXUP 0.3' is not an arm; did you mean MIXUP 0",
        ),
        ("GRID: {AUG.MIXUP: 0.2}", "GRID AUG.MIXUP 0.2 is not a list of values"),
        ("GRID: {AUG.MIXUP: [0.2]}", "one arm has nothing to be compared with"),
        ("GRID: {AUG.MIXUP: [0, 0]}", "two arms are called 'MIXUP 0'"),
        ("GRID: {SEED: [0, 1]}", "GRID has SEED, which the study sets for each run"),
        ("ARMS: {a: {OUTPUT: x}, b: {}}", "ARMS a has OUTPUT"),
        ("ARMS: {a: {}, b: 3}", "ARMS b 3 is not a mapping"),
        ("ARMS: {a b: {}, a-b: {}}", "two runs would share the folder"),
        ("ARMS: {a: {}, b: {TRAIN.EPOCH: 3}}", "arm b: TRAIN.EPOCH at --opts: unknown key; did you mean TRAIN.EPOCHS?"),
        ("ARMS: {a: {}, b: {TRAIN.WARMUP_EPOCHS: 99}}", "arm b: TRAIN.WARMUP_EPOCHS 99 is more than TRAIN.EPOCHS 28"),
        (f"ARMS: {{a: {{}}, {'b' * 70}: {{}}}}", "must be 1 to 64 letters"),
        (f"GRID: {{SAVE_FREQ: {list(range(1, 40))}, PRINT_FREQ: {list(range(1, 40))}}}", "1,000"),
    ],
)
def test_faults_are_named(tmp_path, text, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        read(tmp_path, text)


def test_a_study_needs_a_config(tmp_path):
    path = tmp_path / "trial.yaml"
    path.write_text("SEEDS: [0]\n")
    with pytest.raises(UsageError, match="no CFG"):
        read_study(path)
    path.write_text("CFG: absent.yaml\nGRID: {AUG.MIXUP: [0, 1]}\n")
    with pytest.raises(UsageError, match=r"absent\.yaml does not exist"):
        read_study(path)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_committed_studies_can_be_run(path):
    study = read_study(path)
    assert len(study.runs) >= 2 * len(study.arms)


@pytest.mark.parametrize("name", ["batch_size", "batch_size_lite0"])
def test_batch_size_studies_vary_the_batch_alone_or_with_the_rate(name):
    """Fixed rate: what an update takes, BASE_LR x batch / 512, is that of batch 32, in all three rates."""
    study = read_study(ROOT / "configs" / "studies" / f"{name}.yaml")
    values = {run.arm: flatten(run.loaded.config) for run in study.runs}
    base = values["batch 32"]
    assert study.arms[0] == "batch 32"
    for arm, ours in values.items():
        changed = {key for key in ours if ours[key] != base[key]} - {"TAG", "SEED"}
        rates = {"TRAIN.BASE_LR", "TRAIN.WARMUP_LR", "TRAIN.MIN_LR"}
        if "epochs" in arm:
            assert changed <= {"TRAIN.EPOCHS", "TRAIN.WARMUP_EPOCHS"}
            assert ours["TRAIN.EPOCHS"] == int(arm.split()[0])
        else:
            assert ours["DATA.BATCH_SIZE"] == int(re.findall(r"\d+", arm)[0])
            assert changed <= {"DATA.BATCH_SIZE", *(rates if "fixed" in arm else ())}
        for key in rates if "fixed" in arm else ():
            assert scale_lr(ours[key], ours["DATA.BATCH_SIZE"]) == pytest.approx(scale_lr(base[key], 32))
    sizes = [8, 16, 32, 64, 128] if name == "batch_size" else [8, 32, 128]
    assert {arm for arm in values if "epochs" not in arm} == {f"batch {size}" for size in sizes} | {
        f"batch {size}, fixed rate" for size in sizes if size != 32
    }
