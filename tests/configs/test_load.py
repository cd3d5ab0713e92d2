"""Precedence, strict YAML, nearest names, and every committed config."""

import contextlib
import re
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from configs.checks import check_training
from configs.keys import FORMER_KEYS, KEYS, get_defaults, reference
from configs.load import differences, flatten, from_text, load
from configs.values import ANYTHING
from tools.base.errors import UsageError

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_each_layer_wins_over_the_one_before_it(tmp_path):
    write(tmp_path, "base.yaml", "TRAIN: {EPOCHS: 11, CLIP_GRAD: 1.0, MIN_LR: 1e-7, WARMUP_EPOCHS: 1}\nTAG: base")
    path = write(tmp_path, "own.yaml", "BASE: [base.yaml]\nTRAIN: {CLIP_GRAD: 2.0, MIN_LR: 2e-7}\nTAG: own")
    loaded = load(path, ["TRAIN.MIN_LR", "3e-7", "TAG", "opts"], [("TAG", "flag", "--tag")])
    train = loaded.config.TRAIN
    assert (train.WEIGHT_DECAY, train.EPOCHS, train.CLIP_GRAD, train.MIN_LR) == (0.05, 11, 2.0, 3e-7)
    assert loaded.config.TAG == "flag"
    sources = [
        loaded.sources[key] for key in ("TRAIN.WEIGHT_DECAY", "TRAIN.EPOCHS", "TRAIN.CLIP_GRAD", "TRAIN.MIN_LR", "TAG")
    ]
    assert sources == ["default", str(tmp_path / "base.yaml"), str(path), "--opts", "--tag"]


def test_describe_names_each_value_and_source():
    text = load(None, ["SEED", "7"]).describe().splitlines()
    assert len(text) == len(flatten(get_defaults()))
    assert next(line for line in text if line.startswith("SEED")).split() == ["SEED:", "7", "#", "--opts"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_committed_configs_load_and_survive_a_dump(path):
    config = load(path).config
    check_training(config)
    assert path.read_text().startswith("# "), "a config opens with its story"
    assert not differences(config, from_text(config.dump(), "dump"))


def test_lossless_spellings_are_accepted(tmp_path):
    path = write(tmp_path, "a.yaml", "\ufeffAUG: {MIXUP: 0}\nTRAIN: {EPOCHS: 30.0, BASE_LR: 5e-4}\nTAG: 12")
    config = load(
        path, ["TRAIN.CLIP_GRAD", "1", "DATA.MEAN", "[0, 0, 0]", "DATA.STD", "[1, 1, 1]", "MODEL.SWIN.APE", "true"]
    ).config
    assert (config.AUG.MIXUP, config.TRAIN.EPOCHS, config.TRAIN.BASE_LR, config.TAG) == (0.0, 30, 5e-4, "12")
    assert (config.TRAIN.CLIP_GRAD, config.DATA.MEAN, config.MODEL.SWIN.APE) == (1.0, [0, 0, 0], True)
    assert isinstance(config.TRAIN.EPOCHS, int)


def test_every_row_accepts_its_default_and_every_number_has_a_range():
    assert list(flatten(get_defaults())) == list(KEYS)
    assert not set(FORMER_KEYS) & set(KEYS)
    for name, key in KEYS.items():
        assert key.check.holds(key.default), name
        if isinstance(key.default, int | float) and not isinstance(key.default, bool):
            assert key.check is not ANYTHING, name


def test_docs_config_lists_the_rows():
    assert (ROOT / "docs" / "config.md").read_text() == reference(), "python -m configs.keys > docs/config.md"


@pytest.mark.parametrize("former", FORMER_KEYS)
def test_a_former_key_names_its_successor_and_a_stored_config_may_hold_it(former):
    now = FORMER_KEYS[former]
    with pytest.raises(UsageError, match=f"not a key any more; .*{re.escape(now)}"):
        load(None, [former, "1"])
    value = get_defaults()
    for name in (now if now in KEYS else "SEED").split("."):
        value = value[name]
    *groups, leaf = former.split(".")
    tree = {leaf: value}
    for group in reversed(groups):
        tree = {group: tree}
    assert not differences(from_text(yaml.safe_dump(tree), "stored"), get_defaults())


@pytest.mark.parametrize(("crop", "resize"), [("true", "crop"), ("false", "squash")])
def test_a_former_truth_value_is_now_a_name(crop, resize):
    assert flatten(from_text(f"TEST: {{CROP: {crop}}}", "stored"))["DATA.RESIZE"] == resize
    with pytest.raises(UsageError, match=rf"it is DATA\.RESIZE now \(.*{crop}: {resize}"):
        load(None, ["TEST.CROP", crop])
    with pytest.raises(UsageError, match=r"DATA\.RESIZE at stored"):
        from_text("TEST: {CROP: [1]}", "stored")


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-n3-p0.5-tweights", "augmix-m5-w4-d2", "3a", "v0r"])
def test_policies_that_timm_knows_are_taken(policy):
    check_training(load(None, ["AUG.AUTO_AUGMENT", policy]).config)


@pytest.mark.parametrize("bases", [1, 2], ids=["long", "doubled"])
def test_a_base_chain_has_an_end(tmp_path, bases):
    """Doubled 40 times it would be read 2**40 times."""
    for i in range(40):
        write(tmp_path, f"{i}.yaml", f"BASE: [{', '.join([f'{i + 1}.yaml'] * bases)}]")
    write(tmp_path, "40.yaml", "SEED: 2")
    with pytest.raises(UsageError, match="more than 32 files"):
        load(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", ["a\\0b", "\\ud800", "a" * 300])
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(UsageError, match=r"config .*\.yaml cannot be read"):
        load(write(tmp_path, "a.yaml", f'BASE: ["{name}.yaml"]'))
    with pytest.raises(UsageError, match="of UTF-8"):
        load(None, None, [("OUTPUT", "\udcff", "--output")])


@pytest.mark.parametrize("text", ["".join(f"k{i}: 1\n" for i in range(4000)), f"TRAIN: {{FREEZE: [{'a,' * 15500}]}}"])
def test_the_largest_config_is_answered_at_once(tmp_path, text):
    started = time.process_time()
    with contextlib.suppress(UsageError):
        load(write(tmp_path, "large.yaml", text))
    assert time.process_time() - started < 1.5


def test_the_tree_is_frozen_and_the_defaults_stay_as_they_are():
    config = load(None, ["SEED", "3"]).config
    with pytest.raises(AttributeError):
        config.SEED = 4
    assert get_defaults().SEED == 0
