"""Faults in configs (A), on the command line (B) and in the environment (K11, H): exit code, one line, no trace.

Rows carry the numbers of the project's list of faults. Every row goes through an entry point, in this process.
"""

import resource
import time

import pytest
from provoke import NO_FILES, faults, large, put

import main
import process_dataset
import test as referee

BOMB = "\n".join(
    ["a: &a [x]", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))]
)
FILES = [
    *(("A1", make, "bad.yaml") for make in NO_FILES.values()),
    ("A2", "\ufeff", "is empty"),
    ("A2", "# nothing\n", "is empty"),
    ("A4", "TAG: a\n---\nTAG: b\n", "another document"),
    ("A4", "TAG: @a", ":1:6"),
    ("A4", "? [a]\n: 1", "a key must be a name"),
    ("A8", "TRAIN: null", "group of keys"),
    ("A10", "TRAIN: {EPOCHS: 1_0}", "is not a whole number"),
    ("A10", "SEED: 0x10", "is not a whole number"),
    ("A10", "SEED: 2001-01-01", "is not a whole number"),
    ("A11", "TAG: a\nSEED: 1\nTAG: b", "given twice, on lines 1 and 3"),
    ("A13", "x: !!python/name:os.system", "is not allowed"),
    ("A13", "%TAG ! tag:x,2000:\n---\nTAG: !a b", "is not allowed"),
    ("A14", "BASE: [bad.yaml]", "include cycle bad.yaml -> bad.yaml"),
    ("A14", "BASE: 3", "BASE must be a file name"),
    ("A14", "BASE: [nope.yaml]", "nope.yaml does not exist"),
    ("A14", "BASE: [/dev/zero]", "/dev/zero is not a file"),
    ("A16", "TAG: a".encode("utf-16"), "not UTF-8 at byte 0"),
    ("A17", BOMB, "aliases are not allowed"),
    ("A17", large(100 * 2**20), "larger than"),
    ("A17", "a: " + "[" * 10_000 + "]" * 10_000, "nested deeper"),
    ("A17", "{a: " * 8_000, "nested deeper"),
    ("A17", "- " * 10_000, "nested deeper"),
    ("A2", "", "is empty"),
    ("A4", "- 1", "not KEY: value"),
    ("A4", "TRAIN:\n\tEPOCHS: 1", ":2:1"),
    ("A4", "TAG: 'open", ":1:"),
    ("A11", "TRAIN: {EPOCHS: 1, EPOCHS: 2}", "given twice, on lines 1 and 1"),
    ("A5", "EPOCH: 3", "TRAIN.EPOCHS"),
    ("A5", "TRAIN: {EPOCH: 3}", "did you mean TRAIN.EPOCHS?"),
    ("A5", "MODEL: {EPOCHS: 3}", "did you mean TRAIN.EPOCHS?"),
    ("A7", "TRAIN: {EPOCHS: -5}", "must be between 1 and 100,000"),
    ("A7", "TRAIN: {EPOCHS: 1.5}", "is not a whole number"),
    ("A7", "TRAIN: {EPOCHS: 010}", "is not a whole number"),
    ("A7", "TRAIN: {EPOCHS: 1:30}", "is not a whole number"),
    ("A8", "TRAIN: {EPOCHS: null}", "is not a whole number"),
    ("A7", "TRAIN: {EPOCHS: true}", "is not a whole number"),
    ("A7", "TRAIN: {BASE_LR: .nan}", "finite"),
    ("A7", "TRAIN: {BASE_LR: .inf}", "finite"),
    ("A10", "TRAIN: {BASE_LR: 1e-3_0}", "is not a number"),
    ("A7", "TRAIN: {USE_CHECKPOINT: yes}", "truth value"),
    ("A5", "TRAIN: 3", "group of keys"),
    ("A5", "TAG: {A: 1}", "is not a text"),
    ("A20", "TAG: ../../etc", "TAG"),
    ("A5", "DATA: {TARGETS: mutli}", "did you mean multi?"),
    ("A13", "x: !!python/object/apply:os.system ['touch /tmp/owned']", "os.system is not allowed"),
    ("A13", 'TRAIN: {EPOCHS: !!int "abc"}', ":1:17: tag tag:yaml.org,2002:int is not allowed"),
    ("A13", 'TAG: !!timestamp "x"', "is not allowed"),
    ("A13", "TRAIN: {FREEZE: !!set {a}}", "is not allowed"),
    ("A7", "TRAIN: {EPOCHS: 1" + "0" * 5000 + "}", "is not a whole number"),
    ("A7", "TRAIN: {BASE_LR: 1" + "0" * 400 + "}", "is not a number"),
    ("A7", "TRAIN: {EPOCHS: 1e300}", "must be between"),
    ("A7", "TRAIN: {BASE_LR: 1e40}", "must be between"),
    ("A7", "TRAIN: {WEIGHT_DECAY: 1e300}", "must be between"),
    ("A7", "DATA: {STD: [1e-300, 1, 1]}", "three numbers between"),
    ("A7", "DIST: {TIMEOUT_SECONDS: 100000000000000000}", "must be between"),
    ("A7", "AUG: {MIXUP: 1e-300}", "0 or between"),
    ("A7", "MODEL: {SWIN: {DEPTHS: [true, true, true, true]}}", "list of whole numbers"),
    ("A7", "MODEL: {SWIN: {QK_SCALE: true}}", "null or between"),
    ("A7", "TRAIN: {OPTIMIZER: {BETAS: [false, false]}}", "two numbers in"),
    ("A20", "MODEL: {NAME: ..}", "not only dots"),
    ("A20", "MODEL: {NAME: .}", "not only dots"),
    ("A16", 'OUTPUT: "\\ud800"', "of UTF-8"),
    ("A16", 'MODEL: {RESUME: "a\\0b"}', "of UTF-8"),
    ("A13", "a: &a [1]\nb: *a", "aliases are not allowed"),
    ("A17", "a: " + "[" * 30 + "]" * 30, "nested deeper"),
    ("A5", "DATA: {DATASET: imagenet}", "the folder names the classes"),
    ("A7", "AUG: {CUTMIX_MINMAX: 3}", "must be null or two numbers"),
    ("A16", b"TAG: \xff", "not UTF-8 at byte 5"),
    ("A16", b"TAG: a\x00b", "character"),
    ("A17", b"#" * 32_001, "larger than"),
]


@faults("content, words", FILES)
def test_a_config_that_is_none(fault, tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    put(path, content)
    started = time.process_time()
    fault(main.main, ["--cfg", path, "--output", tmp_path / "out"], 2, words)
    assert time.process_time() - started < 1.5  # A17: of work, whatever else the machine does


OPTIONS = [
    ("B4", ["SEED"], "has no value"),
    ("B4", ["SEED", "1", "TAG"], "'TAG' has no value"),
    ("B4", ["", ""], "unknown key"),
    ("B4", ["TRAIN.EPOCHS.X", "1"], "unknown key"),
    ("B4", ["SEED", "1\n---\n2"], "another document"),
    ("A5", ["BASE", "x"], "unknown key"),
    ("H2", ["DEVICE", "cuda:7"], "one of auto, cpu"),
    ("A13", ["SEED", "!!python/object/apply:os.system [id]"], "is not allowed"),
    ("A17", ["SEED", "[" * 9_000], "nested deeper"),
    ("A20", ["TAG", "../../etc"], "letters, digits"),
    ("A20", ["TAG", ""], "letters, digits"),
    ("A20", ["TAG", "a\nb"], "letters, digits"),
    ("A20", ["OUTPUT", ""], "a path of 1 to 2048 bytes"),
    ("A19", ["SEED"], "has no value"),
    ("A19", ["DATA.BATCH_SIZE", "7"], "mix images in pairs"),
    ("A5", ["TRAIN.EPOCHS", "5"], "WARMUP_EPOCHS"),
    ("A19", ["DATA.IMG_SIZE", "225"], "not a multiple"),
    ("A19", ["DATA.IMG_SIZE", "256"], "does not divide into windows"),
    ("A19", ["MODEL.SWIN.NUM_HEADS", "[3, 6, 12, 25]"], "do not divide"),
    ("A19", ["MODEL.SWIN.DEPTHS", "[2, 2]"], "2 stages"),
    ("A19", ["DATA.MEAN", "[1, 1, 1]"], "together"),
    ("A19", ["TEST.IMG_SIZE", "256"], "scores at the size"),
    ("A19", ["AUG.AUTO_AUGMENT", "rnd-m9"], "a policy of timm"),
    ("A19", ["AUG.AUTO_AUGMENT", "rand-foo"], "a policy of timm"),
    ("A19", ["AUG.AUTO_AUGMENT", "rand-mabc"], "a policy of timm"),
    ("A19", ["AUG.AUTO_AUGMENT", "original-x"], "a policy of timm"),
    ("A5", ["TRAIN.EPOCHS", "!!int x"], "is not allowed"),
    ("A19", ["OUTPUT", "\udcff"], "does not allow"),
    ("A19", ["DATA.MEAN", "[a, b, c]", "DATA.STD", "[1, 1, 1]"], "three numbers"),
    ("A19", ["TRAIN.FREEZE", "[1]"], "list of names"),
]


@faults("options, words", OPTIONS)
def test_options_that_cannot_work(fault, tmp_path, options, words):
    (tmp_path / "own.yaml").write_text("SEED: 0")
    fault(main.main, ["--cfg", "own.yaml", "--output", "out", "--opts", *options], 2, words)


FLAGS = [
    ("B1", ["--reusme", "x"], "did you mean --resume?"),
    ("B1", ["--epochs", "5"], "unrecognized argument '--epochs'"),
    ("B1", ["--batch_size", "64"], "did you mean --batch-size?"),
    ("B1", ["stray"], "unrecognized argument 'stray'"),
    ("B1", ["@file"], "unrecognized argument '@file'"),
    ("B2", ["--batch", "-4"], "unrecognized argument '--batch'"),
    ("B2", ["--batch=4"], "did you mean --batch-size?"),
    ("B2", ["--batch-size", "-4"], "DATA.BATCH_SIZE"),
    ("B2", ["--batch-size", "0"], "must be between"),
    ("B2", ["--batch-size", "1_0"], "invalid int"),
    ("B2", ["--batch-size", " 4 "], "invalid int"),
    ("B2", ["--batch-size", "\N{FULLWIDTH DIGIT FOUR}"], "invalid int"),
    ("B2", ["--batch-size", "9" * 5000], "invalid int"),
    ("B2", ["--zip=1"], "ignored explicit argument"),
    ("B4", ["--tag"], "expected one argument"),
    ("B4", ["--allow-change", "TRAIN.EPOCH"], "did you mean TRAIN.EPOCHS?"),
    ("B4", ["--eval"], "--resume FILE"),
    ("B7", ["--output", "{dataset}/train"], "inside the other"),
    ("B7", ["--output", "{dataset}"], "inside the other"),
    ("B7", ["--output", "{tiny}"], "tiny.yaml is not a folder"),
    ("B8", ["--tag", "a" * 300], "1 to 64"),
    ("B8", ["--output", "a" * 260], "shorter one"),
    ("B8", ["--output", "a/" * 3000], "2048 bytes"),
    ("B8", ["--cfg", "a" * 300 + ".yaml"], "cannot be read"),
    ("B8", ["--cfg", "a\0b.yaml"], "cannot be read"),
    ("B8", ["--resume", "a" * 260], "shorter one"),
    ("A20", ["--tag", "../../etc"], "letters, digits"),
    ("A20", ["--tag", ".."], "not only dots"),
    ("E13", ["--batch-size", "64"], "do not fill one batch"),
    ("A19", ["--accumulation-steps", "9"], "more than the 5 batches"),
    ("A19", ["--opts", "TRAIN.FREEZE", "[layer.0]"], "no such part"),
]


@faults("flags, words", FLAGS)
def test_flags_that_cannot_work(fault, tiny, dataset, flags, words):
    flags = [flag.format(dataset=dataset, tiny=tiny) for flag in flags]
    fault(main.main, ["--cfg", tiny, "--data-path", dataset, "--output", "out", *flags], 2, words)


ENVIRONMENTS = [
    ("K11", {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "must be whole numbers"),
    ("K11", {"RANK": "x"}, "not WORLD_SIZE"),
    ("K11", {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}, "must be whole numbers"),
    ("K11", {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "must lie in"),
    ("K11", {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "not an address"),
    (
        "K11",
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "70000"},
        "not an address",
    ),
    ("K11", {"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE=x"),
]


@faults("environment, words", ENVIRONMENTS)
def test_environments_that_no_launcher_makes(fault, monkeypatch, tiny, dataset, trained, environment, words):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    workers = ["--opts", "DATA.NUM_WORKERS", "-1"]
    fault(main.main, ["--cfg", tiny, "--data-path", dataset, "--output", "out", *workers], 2, words)
    fault(referee.main, ["--resume", trained / "best.pth", "--data-path", dataset, "--to", "to", *workers], 2, words)


def test_nccl_without_a_gpu_h8(fault, monkeypatch, tiny, dataset):
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ["--cfg", tiny, "--data-path", dataset, "--output", "out", "--opts", "DIST.BACKEND", "nccl"]
    fault(main.main, arguments, 5, "nccl needs a GPU")


def test_more_workers_than_files_may_be_open_h7(fault, tiny, dataset):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (250, limits[1]))
    try:
        arguments = ["--cfg", tiny, "--data-path", dataset, "--output", "out", "--opts", "DATA.NUM_WORKERS", "64"]
        fault(main.main, arguments, 5, "NUM_WORKERS 64", "ulimit -n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_folder_for_results_that_may_not_be_written_i4(fault, tmp_path, tiny, dataset, raw):
    (tmp_path / "closed").mkdir(mode=0o555)
    arguments = ["--cfg", tiny, "--data-path", dataset, "--output", "closed"]
    fault(main.main, arguments, 5, "closed/tiny", "Permission denied")
    fault(process_dataset.main, ["--src", raw, "--dst", "closed/d"], 5, "closed", "Permission denied")


@pytest.mark.parametrize(
    "option", [["DATA.IMG_SIZE", "224"], ["DATA.RESIZE", "squash"], ["MODEL.NAME", "x"], ["TEST.IMG_SIZE", "128"]]
)
def test_a_key_that_scoring_does_not_look_at_is_refused(fault, trained, option):
    fault(referee.main, ["--resume", trained / "best.pth", "--opts", *option], 2, option[0], "the checkpoint sets it")


def test_going_on_and_beginning_exclude_each_other(fault, tiny):
    fault(main.main, ["--cfg", tiny, "--resume", "a.pth", "--pretrained", "b.pth"], 2, "give one of them")
