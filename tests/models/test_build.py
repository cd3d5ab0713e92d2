"""From the MODEL node to a model."""

import functools
import inspect

import pytest
import timm
import torch

from configs.load import load
from models import build
from models.swin_transformer import SwinTransformer
from tools.base.errors import Interrupted, UsageError

# Table 7 of the paper. The rest of a name (patch4_window7_224) is the input it is built for.
VARIANTS: dict[str, dict] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}


def test_every_swin_key_is_an_argument_of_the_constructor():
    others = {"img_size", "num_classes", "drop_rate", "drop_path_rate", "use_checkpoint", "selective_checkpoint"}
    keys = {key.lower() for key in load(None).config.MODEL.SWIN}
    assert keys | others == set(inspect.signature(SwinTransformer).parameters)


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_configs_and_variants_agree(name):
    swin = load(f"configs/swin_{name}_patch4_window7_224.yaml").config.MODEL.SWIN
    assert {"embed_dim": swin.EMBED_DIM, "depths": tuple(swin.DEPTHS), "num_heads": tuple(swin.NUM_HEADS)} == VARIANTS[
        name
    ]


@pytest.mark.parametrize(("name", "millions"), [("tiny", 28.3), ("small", 49.6), ("base", 87.8), ("large", 196.5)])
def test_variants_have_the_size_of_microsofts(name, millions):
    with torch.device("meta"):
        model = SwinTransformer(**VARIANTS[name])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_any_timm_name_with_its_own_normalization():
    node = load("configs/tf_efficientnet_lite0.yaml").config.MODEL
    model = build.build_model(node, 224, 6)
    assert build.head_name(model) == "classifier"
    assert model.get_classifier().out_features == 6
    assert build.normalization(node) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert build.normalization(load(None).config.MODEL)[0] == timm.data.IMAGENET_DEFAULT_MEAN
    wrong = load(None, ["MODEL.TYPE", "timm", "MODEL.NAME", "tf_efficientnet_lit0"]).config.MODEL
    with pytest.raises(UsageError, match="did you mean tf_efficientnet_lite0"):
        build.build_model(wrong, 224, 6)


def test_layers_of_timm_models_are_numbered_too():
    node = load("configs/tf_efficientnet_lite0.yaml").config.MODEL
    model = build.build_model(node, 224, 6)
    index = build.layer_index(model)
    depths = [index(name) for name, _ in model.named_parameters()]
    assert depths == sorted(depths)
    assert depths[0] == 0
    assert index("classifier.weight") == max(depths)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("vit_tiny_patch16_224", (96, 0), r"Input height \(96\) doesn't match model \(224\)"),
        ("vit_tiny_patch16_224", (224, 96), r"Input height \(96\)"),
        ("convit_tiny", (96, 0), "cannot be used so"),
        ("deit_tiny_distilled_patch16_224", (224, 0), "head_dist"),
        ("resnet18.nonexistent", (96, 0), "nonexistent"),
    ],
)
def test_an_option_that_an_architecture_lacks_is_refused_when_it_is_built(name, sizes, words):
    node = load(None, ["MODEL.TYPE", "timm", "MODEL.NAME", name]).config.MODEL
    with pytest.raises(UsageError, match=rf"MODEL\.NAME .*{words}"):
        build.normalization(node), build.build_model(node, sizes[0], 6, test_size=sizes[1])


def test_the_trial_pass_changes_nothing():
    """Neither the statistics of batch norm, nor the random state, nor the mode."""
    node = load(None, ["MODEL.TYPE", "timm", "MODEL.NAME", "test_resnet"]).config.MODEL
    torch.manual_seed(0)
    model = build.build_model(node, 64, 6)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=6, drop_rate=0.0, drop_path_rate=node.DROP_PATH_RATE)
    assert torch.equal(torch.rand(1), drawn)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert model.training


def test_selective_checkpoint_reaches_every_block_and_timm_models_refuse_it():
    config = load("configs/sample.yaml", ["TRAIN.SELECTIVE_CHECKPOINT", "true"]).config
    model = build.build_model(config.MODEL, 96, 6, selective_checkpoint=config.TRAIN.SELECTIVE_CHECKPOINT)
    assert all(
        block.mlp.selective_checkpoint and block.attn.selective_checkpoint
        for stage in model.layers
        for block in stage.blocks
    )
    node = load("configs/tf_efficientnet_lite0.yaml").config.MODEL
    with pytest.raises(UsageError, match=r"TRAIN\.SELECTIVE_CHECKPOINT"):
        build.build_model(node, 64, 6, selective_checkpoint=True)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_model_stays_as_it_is():
    """No C++ compiler, as on most machines: the model comes back unchanged, with the reason."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    forward, note = build.compiled(model, [torch.randn(3, 5)])
    assert forward is model
    assert note.startswith("TRAIN.COMPILE: torch.compile does not work here and is left out: ")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_signal_while_compiling_ends_the_run(monkeypatch):
    """torch treats it as a failure of its compiler."""

    def interrupted(_graph, _inputs):
        raise Interrupted("ended by SIGTERM", 15)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=interrupted))
    with pytest.raises(Interrupted):
        build.compiled(torch.nn.Linear(5, 4), [torch.randn(3, 5)])
    torch.compiler.reset()


def test_a_traced_swin_gives_the_same_gradients():
    """Through the graphs that torch.compile traces, before any compiler, with selective_checkpoint."""
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=32, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, selective_checkpoint=True
    ).train()
    images, keep = torch.randn(3, 3, 32, 32), model.draw_drop_path(3)
    results = []
    for forward in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        forward(images, keep).square().sum().backward()
        results.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.compiler.reset()
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, atol=1e-5, rtol=1e-4)
