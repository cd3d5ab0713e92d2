"""Every known weight layout loads into our Swin, and no weight keeps its initial value silently."""

import collections
import re

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from yacs.config import CfgNode

from models.swin_transformer import SwinTransformer
from models.weights import load_pretrained, load_strictly, resize_table
from tools.base.errors import CheckpointError
from tools.checkpoint.store import read

TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"
SMALL = {"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


def fresh(**options):
    torch.manual_seed(7)
    return SwinTransformer(**{**SMALL, "num_classes": 6, **options})


@pytest.fixture
def source():
    """A Swin with random parameters everywhere, so that a misplaced one is noticed."""
    torch.manual_seed(0)
    model = SwinTransformer(**SMALL, num_classes=10)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def body_equal(model, source):
    theirs = source.state_dict()
    return all(
        torch.equal(value, theirs[key]) for key, value in model.state_dict().items() if not key.startswith("head")
    )


def microsoft(state):
    """With the buffers that Microsoft's files carry."""
    extra = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16),
        "layers.0.blocks.1.attn_mask": torch.ones(4, 16, 16),
    }
    return {"model": collections.OrderedDict(state | extra)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s},
        microsoft,
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"model._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {(k if k.startswith("head") else f"backbone.{k}"): v for k, v in s.items()},
    ],
)
def test_microsofts_layouts_through_real_files(source, tmp_path, wrap):
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    model = fresh()
    line = load_pretrained(model, read(tmp_path / "w.pth"), "w.pth", ["head"])
    assert body_equal(model, source)
    assert torch.equal(model.head.weight, fresh().head.weight), "the head of six classes is new"
    assert "head of 10 classes: replaced by a new one of 6" in line
    assert "\n" not in line


def test_a_checkpoint_of_the_course_projects_code(source, tmp_path):
    """It holds a yacs node, optimizer and scheduler state, and the epoch beside the weights."""
    config = CfgNode({"MODEL": CfgNode({"NAME": "swin"}), "BASE": [""]})
    content = {
        "model": source.state_dict(),
        "optimizer": {"state": {}},
        "lr_scheduler": {},
        "max_accuracy": 88.4,
        "epoch": 1,
        "config": config,
        "amp": {"loss_scaler0": {"loss_scale": 65536.0}},
    }
    torch.save(content, tmp_path / "ckpt_epoch_1.pth")
    model = fresh(num_classes=10)
    load_pretrained(model, read(tmp_path / "ckpt_epoch_1.pth"), "w", ["head"])
    assert body_equal(model, source)
    assert torch.equal(model.head.weight, source.head.weight)


def test_safetensors(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = fresh()
    load_pretrained(model, read(tmp_path / "w.safetensors"), "w", ["head"])
    assert body_equal(model, source)


def test_timms_layout_gives_timms_output():
    torch.manual_seed(0)
    theirs = timm.models.swin_transformer.SwinTransformer(**SMALL, num_classes=6).eval()
    model = fresh().eval()
    line = load_pretrained(model, theirs.state_dict(), "w", ["head"])
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert "timm's layout" in line


def test_torchvisions_layout_gives_torchvisions_output():
    torch.manual_seed(0)
    theirs = torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=6).eval()
    model = fresh().eval()
    line = load_pretrained(model, theirs.state_dict(), "w", ["head"])
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert "torchvision's layout" in line


def test_bias_tables_are_resized_for_another_window(source):
    model = fresh(img_size=128, window_size=8)
    line = load_pretrained(model, source.state_dict(), "w", ["head"])
    old, new = (m.layers[0].blocks[0].attn.relative_position_bias_table for m in (source, model))
    assert "4 position tables resized" in line
    torch.testing.assert_close(new.view(15, 15, 2)[7, 7], old.view(7, 7, 2)[3, 3], atol=1e-5, rtol=1e-5)
    ramp = torch.arange(49.0).repeat(2, 1).T.contiguous()
    assert torch.equal(resize_table(ramp, 49), ramp)
    smooth = resize_table(ramp, 225).view(15, 15, 2)[..., 0]
    assert (smooth.diff(dim=0) > 0).all()


def test_a_head_of_any_width():
    for width in (16, 40):
        source = fresh(embed_dim=width, num_heads=(2, 2), num_classes=1000)
        model = fresh(embed_dim=width, num_heads=(2, 2))
        load_pretrained(model, source.state_dict(), "w", ["head"])
        assert model.head.weight.shape == (6, 2 * width)
        assert body_equal(model, source)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s.pop("norm.weight"), "missing norm.weight"),
        (lambda s: s.update(stray=torch.zeros(1)), "unexpected stray"),
        (lambda s: s.update({"norm.weight": torch.zeros(3)}), r"wrong shape norm.weight \(3,\)"),
        (lambda s: s["norm.weight"].fill_(float("nan")), "non-finite norm.weight"),
        (lambda s: s.clear(), "holds no weights"),
        (lambda s: s.update({TABLE: torch.zeros(0, 2)}), "wrong shape"),
        (lambda s: s.update({TABLE: torch.zeros(10, 2)}), "wrong shape"),
        (lambda s: s.update({TABLE: torch.zeros(169, 2, dtype=torch.int64)}), "wrong shape"),
        (lambda s: s.update({"norm.weight": s["norm.weight"].to(torch.int8)}), "wrong kind norm.weight torch.int8"),
        (lambda s: s.update({"module.norm.weight": torch.zeros(48)}), r"twice, with and without module\."),
    ],
)
def test_what_does_not_fit_is_an_error_naming_keys(source, damage, words):
    state = {key: value.clone() for key, value in source.state_dict().items()}
    damage(state)
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_pretrained(model, {"model": state}, "w.pth", ["head"])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    with pytest.raises(CheckpointError):
        load_strictly(model, source.state_dict(), "w.pth")


@pytest.mark.parametrize("kind", ["sparse", "meta", "complex"])
def test_only_plain_tensors_of_real_numbers_are_read(source, tmp_path, kind):
    odd = {"sparse": lambda t: t.to_sparse(), "meta": lambda t: t.to("meta"), "complex": lambda t: t + 1j}[kind]
    torch.save({"model": source.state_dict() | {"norm.weight": odd(torch.ones(48))}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is not a plain tensor"):
        read(tmp_path / "w.pth")


def test_timm_models_take_their_own_keys_and_a_new_head():
    source = timm.create_model("tf_efficientnet_lite0", num_classes=9)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=6)
    line = load_pretrained(model, source.state_dict(), "w", ["classifier"])
    assert torch.equal(model.conv_stem.weight, source.conv_stem.weight)
    assert model.classifier.weight.shape == (6, 1280)
    assert "head of 9 classes" in line


def test_removed_prefixes_are_named(source):
    line = load_pretrained(fresh(), {f"module._orig_mod.{k}": v for k, v in source.state_dict().items()}, "w", ["head"])
    assert "; module._orig_mod. removed from the names, head of 10 classes" in line


def test_both_heads_of_a_model_with_two_are_replaced():
    name, heads = "deit_tiny_distilled_patch16_224", ("head", "head_dist")
    source = timm.create_model(name, img_size=32, num_classes=9)
    model = timm.create_model(name, img_size=32, num_classes=6)
    assert load_pretrained(model, source.state_dict(), "w", heads).count("head of 9 classes") == 2
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


META = (
    ("stem.", "downsample_layers.0."),
    (".blocks.", "."),
    (".conv_dw.", ".dwconv."),
    (".mlp.fc", ".pwconv"),
    ("head.norm.", "norm."),
    ("head.fc.", "head."),
)


def test_convnext_as_meta_publishes_it():
    torch.manual_seed(0)
    source = timm.create_model("test_convnext", num_classes=6).eval()
    state = {}
    for key, value in source.state_dict().items():
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        for ours, theirs in META:
            key = key.replace(ours, theirs)
        state[key] = value
    assert {"downsample_layers.3.1.bias", "stages.0.0.dwconv.weight", "norm.bias", "head.bias"} <= state.keys()
    model = timm.create_model("test_convnext", num_classes=6).eval()
    line = load_pretrained(model, {"model": state}, "w", ["head.fc"])
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert "the authors' layout" in line


def test_position_embeddings_of_a_timm_model_are_resized_for_another_size():
    source = timm.create_model("test_vit", img_size=160, num_classes=6)
    channels = torch.arange(source.embed_dim).float()
    source.pos_embed.data[:, 1:] = channels  # the same at every place, so also after a resize
    model = timm.create_model("test_vit", img_size=96, num_classes=6)
    line = load_pretrained(model, source.state_dict(), "w", ["head"])
    torch.testing.assert_close(model.pos_embed[0, 1:], channels.repeat(36, 1), atol=1e-4, rtol=1e-5)
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])
    assert "1 position tables resized" in line


def name_as_efficientnet_pytorch(model):
    """The weights of timm's EfficientNet under the names of efficientnet_pytorch, which follow the forward pass."""
    tensors, found = model.state_dict(), {}

    def put(name, module):
        found.update({f"{name}.{k[len(module) + 1 :]}": v for k, v in tensors.items() if k.startswith(module + ".")})

    for name, module in (("_conv_stem", "conv_stem"), ("_bn0", "bn1"), ("_conv_head", "conv_head"), ("_bn1", "bn2")):
        put(name, module)
    put("_fc", "classifier")
    stages = [(f"blocks.{i}.{j}", block) for i, stage in enumerate(model.blocks) for j, block in enumerate(stage)]
    for number, (place, block) in enumerate(stages):
        own = [name for name, _ in block.named_children() if name.startswith(("conv", "bn"))]
        theirs = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"][-len(own) :]
        for name, module in zip(theirs, own, strict=True):
            put(f"_blocks.{number}.{name}", f"{place}.{module}")
        for name, module in (("_se_reduce", "se.conv_reduce"), ("_se_expand", "se.conv_expand")):
            put(f"_blocks.{number}.{name}", f"{place}.{module}")
    return found


@pytest.mark.parametrize("name", ["tf_efficientnet_lite1", "tf_efficientnet_b0"])
def test_the_layout_of_efficientnet_pytorch_gives_timms_output(name):
    """In any order of names, as safetensors files sort them."""
    source, model = timm.create_model(name).eval(), timm.create_model(name, num_classes=6).eval()
    tensors = dict(sorted(name_as_efficientnet_pytorch(source).items()))
    assert len(tensors) == len(source.state_dict())
    line = load_pretrained(model, tensors, "file", ["classifier"])
    assert "efficientnet_pytorch's layout" in line
    assert "head of 1000 classes: replaced by a new one of 6" in line
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.forward_features(images), source.forward_features(images))
    tensors = name_as_efficientnet_pytorch(timm.create_model("tf_efficientnet_lite0"))
    with pytest.raises(CheckpointError, match="does not fit the model: missing blocks"):
        load_pretrained(model, tensors, "file", ["classifier"])
