"""Heat maps: the peak is where the evidence is, for tokens, NHWC and NCHW; and a wrong layer is never a picture."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from models.swin_transformer import SwinTransformer
from tools.cam import class_activation_maps, default_layer, find_layer, map_geometry, overlay
from tools.errors import NumericsError, UsageError


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


@pytest.mark.parametrize("layout", ["tokens", "nhwc", "nchw"])
def test_the_peak_is_in_the_quadrant_that_decides(layout):
    model = Corner(layout).eval()
    maps = class_activation_maps(model, model.layer, torch.ones(4, 3, 64, 64), [0, 1, 2, 3])
    for index, heat in enumerate(maps):
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        assert (y >= 32, x >= 32) == (index // 2 == 1, index % 2 == 1)
        inside = heat[32 * (index // 2) :, 32 * (index % 2) :][:32, :32].sum()
        assert inside > 0.8 * heat.sum()
        assert heat.min() >= 0
        assert heat.max() == pytest.approx(1, abs=1e-3)


def test_nothing_for_the_class_is_a_zero_map_and_nan_is_an_error():
    model = Corner("nchw").eval()
    assert not class_activation_maps(model, model.layer, torch.zeros(1, 3, 64, 64), [0]).any()
    with pytest.raises(NumericsError):
        class_activation_maps(model, model.layer, torch.full((1, 3, 64, 64), torch.nan), [0])
    with pytest.raises(UsageError, match="class index 4"):
        class_activation_maps(model, model.layer, torch.ones(1, 3, 64, 64), [4])


def test_gradcam_by_the_papers_formula():
    """Equation 1 and 2 of arXiv 1610.02391 on a real Swin: weights are mean gradients, the map their relu'd sum."""
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=6
    ).eval()
    layer, images, seen = model.layers[-1].blocks[-1].norm1, torch.randn(1, 3, 64, 64), {}
    handle = layer.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), seen.update(out=out))[1])
    model(images)[0, 2].backward()
    handle.remove()
    tokens, gradient = seen["out"][0], seen["out"].grad[0]
    expected = (tokens * gradient.mean(0)).sum(1).relu().view(8, 8).detach().numpy()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    got = class_activation_maps(model, layer, images, [2])[0]
    assert got[4::8, 4::8] == pytest.approx(expected, abs=0.25)  # the map is drawn out to 64x64 between these points
    assert np.corrcoef(got[4::8, 4::8].ravel(), expected.ravel())[0, 1] > 0.97


def test_models_stay_as_they_were():
    model = SwinTransformer(
        img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=6
    ).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    layer = model.layers[0].blocks[1].norm2
    assert class_activation_maps(model, layer, torch.randn(2, 3, 64, 64), [0, 5]).shape == (2, 64, 64)
    assert model.training
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_geometry_of_real_architectures():
    images = torch.randn(1, 3, 64, 64)
    ours = SwinTransformer(
        img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=6
    ).eval()
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
        layer, out = find_layer(model, path), []
        handle = layer.register_forward_hook(lambda _m, _i, o, out=out: out.append(o))
        reshape = map_geometry(model, layer, images)
        handle.remove()
        assert tuple(reshape(out[0]).shape) == shape
    tokens = out[0]
    assert torch.equal(reshape(tokens)[0, :, 1, 2], tokens[0, 1 + 1 * 4 + 2]), "raster order, without the class token"
    for path in ("layers[0].blocks[0].attn", "head", "layers[0].blocks[0].attn.qkv"):
        with pytest.raises(UsageError, match="--layer"):
            map_geometry(ours, find_layer(ours, path), images)


@pytest.mark.parametrize("path", ["layers[9]", "layer[-1]", "__import__('os')", "layers[-1].", "patch_embed[0]", ""])
def test_paths_that_lead_nowhere(path):
    model = SwinTransformer(img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4)
    with pytest.raises(UsageError, match="--layer"):
        find_layer(model, path)


def test_default_layers_exist():
    swin = SwinTransformer(img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4)
    assert find_layer(swin, default_layer(swin)) is swin.layers[-1].blocks[-1].norm1
    lite = timm.create_model("tf_efficientnet_lite0")
    assert find_layer(lite, default_layer(lite)) is not None


def test_red_stays_red_and_heat_is_red():
    """OpenCV's jet is blue at 0 and red at 1, in BGR; a slip would turn them round."""
    photo = np.zeros((4, 4, 3), np.uint8)
    photo[..., 0] = 200
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    mixed = overlay(photo, heat)
    assert mixed[0, 0, 0] > 150 > mixed[0, 0, 2]
    assert mixed[3, 3, 0] == 100
    assert mixed[3, 3, 2] == 64
