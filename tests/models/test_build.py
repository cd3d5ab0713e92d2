"""From the MODEL node to a model."""

import functools
import inspect

import pytest
import timm
import torch
from runs import warm

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
    assert build.head_names(model) == ("classifier",)
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


def timm_node(name, drop_path_rate=0.0):
    return load(
        None, ["MODEL.TYPE", "timm", "MODEL.NAME", name, "MODEL.DROP_PATH_RATE", str(drop_path_rate)]
    ).config.MODEL


@pytest.mark.parametrize(
    ("name", "sizes", "drop_path_rate", "words"),
    [
        ("gmlp_ti16_224", (224, 96), 0, "does not take images of 96 pixels"),
        ("halonet_h1", (100, 0), 0, "does not take images of 100 pixels$"),
        ("dla46x_c", (96, 0), 0.1, "has no drop_path_rate; set MODEL.DROP_PATH_RATE to 0"),
        ("hrnet_w18_small", (96, 0), 0.1, "has no drop_path_rate; set MODEL.DROP_PATH_RATE to 0"),
        ("resnet18.nonexistent", (96, 0), 0, "nonexistent"),
    ],
)
def test_an_option_that_an_architecture_lacks_is_refused_when_it_is_built(name, sizes, drop_path_rate, words):
    node = timm_node(name, drop_path_rate)
    with pytest.raises(UsageError, match=rf"MODEL\.NAME .*{words}"):
        build.normalization(node), build.build_model(node, sizes[0], 6, test_size=sizes[1])


@pytest.mark.parametrize("name", ["dla46x_c", "efficientvit_m0", "hrnet_w18_small"])
def test_architectures_without_stochastic_depth_take_a_rate_of_0(name):
    assert build.build_model(timm_node(name), 96, 6)(torch.zeros(2, 3, 96, 96)).shape == (2, 6)


@pytest.mark.parametrize("name", ["test_vit", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"])
def test_transformers_of_a_fixed_size_take_the_sizes_of_the_config(name):
    """The parameters are those of timm's model for the training size; a second size is for scoring."""
    model = build.build_model(timm_node(name), 112, 6, test_size=224).eval()
    plain = timm.create_model(name, num_classes=6, img_size=112).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images))
        assert model(torch.randn(2, 3, 224, 224)).shape == (2, 6)


def test_two_heads_are_averaged_in_training_too():
    torch.manual_seed(0)
    model = build.build_model(timm_node("deit_tiny_distilled_patch16_224"), 32, 6).train()
    assert build.head_names(model) == ("head", "head_dist")
    for parameter in (*model.head.parameters(), *model.head_dist.parameters()):
        torch.nn.init.normal_(parameter)
    images = torch.randn(2, 3, 32, 32)
    tokens = model.forward_features(images)
    torch.testing.assert_close(model(images), (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2)


def differentiate_stem(name):
    """Backward passes of the strided 1x1 convolution that a model applies to images."""
    for layer in build.build_model(timm_node(name), 64, 6).modules():
        if isinstance(layer, torch.nn.Conv2d) and (layer.in_channels, layer.kernel_size) == (3, (1, 1)):
            for _ in range(10):
                layer(torch.randn(2, 3, 224, 224)).sum().backward()
            return 0
    return 1


def test_a_layer_that_crashes_in_nhwc_is_not_in_nhwc(tmp_path):
    """There, torch writes the gradient of its weight out of bounds on a CPU."""
    run = warm(tmp_path, differentiate_stem, "fastvit_t8")
    assert run.wait() == 0, run.errors


def test_other_convolutions_are_in_nhwc():
    model = build.build_model(timm_node("test_resnet"), 64, 6)
    assert model.layer2[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_trial_pass_changes_nothing():
    """Neither the statistics of batch norm, nor the random state, nor the mode."""
    node = timm_node("test_resnet", 0.1)
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
    """torch must not take it for a failure of its compiler."""

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
