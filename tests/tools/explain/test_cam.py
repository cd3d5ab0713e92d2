"""Heat maps peak where the evidence is, for tokens, NHWC and NCHW; a wrong layer is an error and never a map."""

import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
from places import grid_of_layer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from models.swin_transformer import SwinTransformer
from tools.base.errors import NumericsError, UsageError
from tools.evaluate.inference import VIEWS
from tools.explain.cam import CamRecipe, HeatMaps, compute_heat_maps, join_scales, turn_back
from tools.explain.layers import (
    choose_classic_layer,
    choose_default_layer,
    find_layer,
    find_map_layout,
    list_block_layers,
    list_stage_layers,
)
from tools.explain.methods import METHODS


class Corner(nn.Module):
    """Class c is the brightness of the c-th quadrant, in reading order, seen through a layer of one layout."""

    def __init__(self, layout: str):
        super().__init__()
        self.layout, self.layer = layout, nn.Identity()
        self.gain = nn.Parameter(torch.ones(1))
        self.quadrants = torch.zeros(4, 8, 8)
        for index in range(4):
            y, x = 4 * (index // 2), 4 * (index % 2)
            self.quadrants[index, y : y + 4, x : x + 4] = 1

    def forward(self, images):
        light = nn.functional.adaptive_avg_pool2d(images[:, :1], 8)
        maps = self.gain * light * self.quadrants  # [B, 4, 8, 8]: channel c lights up in quadrant c
        if self.layout == "tokens":
            return self.layer(maps.flatten(2).transpose(1, 2)).transpose(1, 2).mean(2)
        if self.layout == "nhwc":
            return self.layer(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).mean((2, 3))
        return self.layer(maps).mean((2, 3))


def small_swin(**kwargs):
    torch.manual_seed(0)
    return SwinTransformer(
        img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=6, **kwargs
    ).eval()


def heat(model, images, classes, layer="layer", method="gradcam"):
    """The maps by one recipe."""
    return compute_heat_maps(model, images, [CamRecipe(method, layer)], classes).maps[0]


@pytest.mark.parametrize("layout", ["tokens", "nhwc", "nchw"])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "scorecam"])
def test_the_peak_is_in_the_quadrant_that_decides(layout, method):
    model = Corner(layout).eval()
    for index, one in enumerate(heat(model, torch.ones(4, 3, 64, 64), [0, 1, 2, 3], method=method)):
        y, x = np.unravel_index(one.argmax(), one.shape)
        assert (y >= 32, x >= 32) == (index // 2 == 1, index % 2 == 1)
        inside = one[32 * (index // 2) :, 32 * (index % 2) :][:32, :32].sum()
        assert inside > 0.8 * one.sum()
        assert one.min() >= 0
        assert one.max() == pytest.approx(1, abs=1e-3)


def test_no_evidence_is_a_zero_map_and_nan_is_an_error():
    model = Corner("nchw").eval()
    assert not heat(model, torch.zeros(1, 3, 64, 64), [0]).any()
    with pytest.raises(NumericsError):
        heat(model, torch.full((1, 3, 64, 64), torch.nan), [0])
    with pytest.raises(UsageError, match="class index 4"):
        heat(model, torch.ones(1, 3, 64, 64), [4])


def test_gradcam_by_the_papers_formula():
    """Equation 1 and 2 of arXiv 1610.02391 on a Swin: weights are mean gradients, the map is the ReLU of the sum."""
    model = small_swin()
    layer, images, seen = model.layers[-1].blocks[-1].norm1, torch.randn(1, 3, 64, 64), {}
    handle = layer.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), seen.update(out=out))[1])
    model(images)[0, 2].backward()
    handle.remove()
    tokens, gradient = seen["out"][0], seen["out"].grad[0]
    expected = (tokens * gradient.mean(0)).sum(1).relu().view(8, 8).detach().numpy()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    got = heat(model, images, [2], "layers[-1].blocks[-1].norm1")[0]
    assert got[4::8, 4::8] == pytest.approx(expected, abs=0.25)  # between these points the map is interpolated
    assert np.corrcoef(got[4::8, 4::8].ravel(), expected.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("paths", ["layers[0].blocks[1].norm2", "layers[0].blocks[1].norm2+layers[1].blocks[0].norm1"])
def test_maps_equal_those_of_pytorch_grad_cam(method, paths):
    """The library's own pass, one image at a time, against our pass of the whole batch."""
    model, images, classes = small_swin(), torch.randn(3, 3, 64, 64), [4, 0, 4]
    layers = [find_layer(model, path) for path in paths.split("+")]
    library = getattr(pytorch_grad_cam, METHODS[method].library_class)(
        model, layers, lambda t: t.unflatten(1, (round(t.shape[1] ** 0.5),) * 2).permute(0, 3, 1, 2)
    )
    expected = [library(images[i : i + 1], [ClassifierOutputTarget(c)])[0] for i, c in enumerate(classes)]
    library.activations_and_grads.release()
    assert np.abs(heat(model, images, classes, paths, method) - np.stack(expected)).max() < 1e-5


def gradcam_by_hand(model, images, classes, path, side):
    """Grad-CAM's formula (arXiv 1610.02391, equations 1 and 2) with torch alone, before it is scaled: `[B, h, w]`."""
    kept = []
    handle = find_layer(model, path).register_forward_hook(lambda _m, _i, out: kept.append(out))
    logits = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[range(len(classes)), classes].sum(), kept)
    weighted = (kept[0] * gradient.mean(dim=1, keepdim=True)).sum(dim=2).relu()
    return weighted.detach().unflatten(1, (side, side))


def enlarged(maps):
    """Bicubic, by torch, and scaled to [0, 1]."""
    large = torch.nn.functional.interpolate(maps[:, None], (64, 64), mode="bicubic")[:, 0].relu()
    large = large - large.amin((1, 2), keepdim=True)
    return large / large.amax((1, 2), keepdim=True)


def test_joined_layers_views_and_scales_by_hand():
    model, images, classes = small_swin(), torch.randn(2, 3, 64, 64), [1, 2]
    paths = {"layers[0].blocks[1].norm1": 16, "layers[1].blocks[1].norm1": 8}
    views = VIEWS["turns"][:2]
    layers = []
    for path, side in paths.items():
        straight, turned = (gradcam_by_hand(model, view(images), classes, path, side) for view in views)
        layers.append(enlarged(straight + turned.rot90(-1, (1, 2))))
    wanted = (layers[0] * layers[1]).sqrt()
    recipe = CamRecipe("gradcam", "*".join(paths))
    got = compute_heat_maps(model, images, [recipe], classes, views)
    assert got.maps[0] == pytest.approx(wanted.numpy(), abs=1e-4)
    assert got.cells_px == [4]
    small = HeatMaps([got.maps[0][:, ::4, ::4]], [1.0])
    joined = join_scales([small, got])
    upsampled = torch.nn.functional.interpolate(torch.from_numpy(small.maps[0])[:, None], (64, 64), mode="bicubic")
    assert joined.maps[0] == pytest.approx((upsampled[:, 0].relu() * wanted).sqrt().clip(0, 1).numpy(), abs=1e-2)
    assert joined.cells_px == [4]
    for view in VIEWS["all"]:
        assert np.array_equal(turn_back(view, view(images[:, :1])[:, 0].numpy()), images[:, 0].numpy())


def test_the_backward_pass_ends_at_the_layer():
    model, reached = small_swin(), []
    for block in (model.layers[0].blocks[0], model.layers[1].blocks[1]):
        block.register_full_backward_hook(lambda module, _i, _o: reached.append(module))
    heat(model, torch.randn(1, 3, 64, 64), [0], "layers[1].blocks[0].norm1")
    assert reached == [model.layers[1].blocks[1]]


def test_the_model_is_left_unchanged():
    """300 images and ten errors, for a model in training mode except for its head, and partly frozen."""
    model = small_swin().train()
    model.head.eval()
    for parameter in model.patch_embed.parameters():
        parameter.requires_grad_(False)
    trainable = [p.requires_grad for p in model.parameters()]
    for _ in range(10):
        assert heat(model, torch.randn(30, 3, 64, 64), [0] * 30, "layers[0].blocks[1].norm2").shape == (30, 64, 64)
        with pytest.raises(UsageError):
            heat(model, torch.randn(1, 3, 64, 64), [0], "layers[0].blocks[0].attn")
    assert model.training
    assert not model.head.training
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == trainable


def test_an_in_place_activation_after_the_layer_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = torch.randn(2, 3, 16, 16)
    in_place = heat(model, images, [0, 1], "0")
    model[1].inplace = False
    assert np.array_equal(in_place, heat(model, images, [0, 1], "0"))


def test_layers_that_do_not_reach_the_logits():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.never = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)

        def forward(self, images):
            self.unused(images)
            return self.used(images).mean((2, 3))

    for path, words in (("unused", "reach the logits"), ("never", "runs 0 times")):
        with pytest.raises(UsageError, match=words):
            heat(Aside(), torch.ones(1, 3, 16, 16), [0], path)


def test_map_layouts_of_real_architectures():
    images = torch.randn(1, 3, 64, 64)
    ours = small_swin()
    theirs = timm.models.swin_transformer.SwinTransformer(
        img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=6
    ).eval()
    lite = timm.create_model("tf_efficientnet_lite0").eval()
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    for model, path, shape in (
        (ours, "layers[0].blocks[0].norm1", (1, 16, 16, 16)),
        (ours, "layers[0]", (1, 32, 8, 8)),
        (theirs, "layers[-1].blocks[-1].norm1", (1, 32, 8, 8)),
        (theirs, "layers[-1].blocks[-1].norm2", (1, 32, 8, 8)),
        (lite, "blocks[4]", (1, 112, 4, 4)),
        (vit, "blocks[-1].norm1", (1, 192, 4, 4)),
    ):
        out = []
        handle = find_layer(model, path).register_forward_hook(lambda _m, _i, o, out=out: out.append(o))
        model(images)
        handle.remove()
        to_maps = find_map_layout(model, out[0], 1)
        assert tuple(to_maps(out[0]).shape) == shape
        assert heat(model, images, [0], path).shape == (1, 64, 64)
    tokens = out[0]
    assert torch.equal(to_maps(tokens)[0, :, 1, 2], tokens[0, 1 + 1 * 4 + 2]), "raster order, without the class token"
    for path in ("layers[0].blocks[0].attn", "head", "layers[0].blocks[0].attn.qkv"):
        with pytest.raises(UsageError, match="--layer"):
            heat(ours, images, [0], path)


def small_hiera():
    """Its tokens are in the order of the units that it pools."""
    return timm.models.hiera.Hiera(img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 2, 2, 1), num_classes=6)


def small_xcit():
    """Its class token comes after the blocks that are explained, but counts as a prefix token."""
    return timm.models.xcit.Xcit(img_size=64, embed_dim=32, depth=3, num_heads=2, num_classes=6)


def small_swin_v2():
    """Its norms come after the attention, and are 0 in a new model."""
    return timm.models.swin_transformer_v2.SwinTransformerV2(
        img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=6
    )


def small_vit():
    """Its logits depend on the last block's class token only."""
    return timm.create_model("test_vit", img_size=64, num_classes=6)


@pytest.mark.parametrize("build", [small_swin, small_swin_v2, small_vit, small_xcit, small_hiera])
def test_every_default_map_is_in_its_place_and_not_zero(build):
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.get_classifier().parameters() if hasattr(model, "get_classifier") else ():
        torch.nn.init.normal_(parameter)
    paths = [*choose_default_layer(model, "layercam", 64).split("*"), *list_block_layers(model, "norm1")]
    paths += [*list_stage_layers(model, "norm1"), choose_classic_layer(model)]
    for path in paths:
        assert grid_of_layer(model, path, 64) >= (2, 2)
        assert heat(model, torch.randn(6, 3, 64, 64), range(6), path).any()


@pytest.mark.parametrize(
    ("name", "size", "default", "classic"),
    [
        ("cait_xxs24_224", 224, "blocks[21].norm1*blocks[22].norm1", "blocks[23].norm1"),
        ("coat_tiny", 224, "serial_blocks1[-1].norm1*parallel_blocks[-1].norm14", "parallel_blocks[-1].norm14"),
        ("mvitv2_tiny", 224, "stages[-3].blocks[-1].norm1*stages[-2].blocks[-1].norm1", "stages[-1].blocks[-1].norm1"),
        ("resnet18", 224, "layer2*layer3", "layer4"),
        ("resnet18", 320, "layer3*layer4", "layer4"),  # 40, 20 and 10 cells
        ("tf_efficientnet_lite0", 384, "blocks[3]*blocks[5]", "blocks[6]"),  # 48, 24, 24, 12 and 12 cells
        ("tf_efficientnet_lite0", 512, "blocks[3]*blocks[5]", "blocks[6]"),  # the last grid of at most 28 is the last
        ("swinv2_cr_tiny_224", 224, "stages[1]*stages[2]", "stages[3]"),
        ("tnt_s_patch16_224", 224, "blocks[9].norm_out*blocks[10].norm_out", "blocks[11].norm_out"),
        ("twins_svt_small", 224, "blocks[-3][-1].norm1*blocks[-2][-1].norm1", "blocks[-1][-1].norm1"),
    ],
)
def test_default_layers_by_hand(name, size, default, classic):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert (choose_default_layer(model, "layercam", size), choose_classic_layer(model)) == (default, classic)
    assert choose_default_layer(model, "gradcam", size) == classic
    for path in (*default.split("*"), classic):
        find_layer(model, path)


def test_a_layer_of_several_tensors_is_one_plain_line():
    model = timm.create_model("hrnet_w18_small", num_classes=6).eval()
    with pytest.raises(UsageError, match=r"^layer stage\d returns more than one tensor; name another with --layer"):
        heat(model, torch.randn(1, 3, 64, 64), [0], choose_classic_layer(model))
    assert heat(model, torch.randn(6, 3, 64, 64), range(6), "final_layer").any()


def test_means_and_products_are_not_mixed():
    with pytest.raises(UsageError, match="either"):
        CamRecipe("gradcam", "a+b*c")


@pytest.mark.parametrize("path", ["layers[9]", "layer[-1]", "__import__('os')", "layers[-1].", "patch_embed[0]", ""])
def test_paths_that_name_no_module(path):
    model = SwinTransformer(img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4)
    with pytest.raises(UsageError, match="--layer"):
        find_layer(model, path)


def test_the_layers_that_we_choose_exist():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=6).eval()
    lite = timm.create_model("tf_efficientnet_lite0", num_classes=6).eval()
    images = torch.randn(1, 3, 64, 64)
    for model in (small_swin(), lite, vit):
        recipes = [
            CamRecipe("layercam", choose_default_layer(model, "layercam", 64)),
            CamRecipe("gradcam", choose_classic_layer(model)),
        ]
        recipes += [
            CamRecipe("layercam", path)
            for path in (*list_block_layers(model, "norm2"), *list_stage_layers(model, "norm1"))
        ]
        compute_heat_maps(model, images, recipes, [0])
    assert list_block_layers(small_swin(), "norm1") == ["layers[-1].blocks[-2].norm1", "layers[-1].blocks[-1].norm1"]
    assert list_block_layers(lite, "norm1") == ["blocks[5]", "blocks[6]"]
    grids = compute_heat_maps(
        small_swin(), images, [CamRecipe("gradcam", p) for p in list_stage_layers(small_swin(), "norm2")], [0]
    )
    assert grids.cells_px == [4, 8]  # 16 and 8 tokens per side: the first stage's before patch merging
