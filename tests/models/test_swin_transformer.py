"""The Swin against timm's, against second formulas, and against itself with recomputation."""

import pytest
import timm
import torch
import torch.nn.functional as F
from fake_cuda import CUDA, fake_gpu, to_gpu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.swin_transformer import (
    PatchMerging,
    Reorder,
    SwinTransformer,
    WindowAttention,
    add_branch,
    relative_position_index,
    shifted_window_mask,
    window_order,
    window_partition,
)
from models.weights import load_pretrained

SMALL = {
    "img_size": 64,
    "embed_dim": 24,
    "depths": (2, 2, 2),
    "num_heads": (2, 4, 8),
    "window_size": 4,
    "num_classes": 5,
}


def pair(mode=None, **options):
    """Our Swin, in a mode that saves memory, and timm's with the same random weights."""
    torch.manual_seed(0)
    theirs = timm.models.swin_transformer.SwinTransformer(drop_path_rate=0.0, **SMALL, **options)
    for parameter in theirs.parameters():  # also biases and tables, which start at zero or tiny
        torch.nn.init.normal_(parameter, std=0.05)
    ours = SwinTransformer(drop_path_rate=0.0, **SMALL, **options, **(mode or {}))
    load_pretrained(ours, theirs.state_dict(), "timm", ["head"])
    return ours, theirs


@pytest.mark.parametrize("attention", ["_plain", "_fused"])  # of CPUs and of GPUs
@pytest.mark.parametrize("mode", [{}, {"selective_checkpoint": True}, {"use_checkpoint": True}], ids=str)
@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"mlp_ratio": 2.0}], ids=str)
def test_outputs_and_gradients_equal_timms(monkeypatch, options, mode, attention):
    monkeypatch.setattr(WindowAttention, "_plain", getattr(WindowAttention, attention))
    ours, theirs = pair(mode, **options)
    images = torch.randn(3, 3, 64, 64)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
    ours.train(), theirs.train()
    a, b = images.clone().requires_grad_(), images.clone().requires_grad_()
    ours(a).square().sum().backward()
    theirs(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)
    wanted = {name: p.grad.norm() for name, p in theirs.named_parameters()}
    got = {name: p.grad.norm() for name, p in ours.named_parameters()}
    torch.testing.assert_close(sorted(got.values()), sorted(wanted.values()), atol=1e-4, rtol=1e-4)


def test_swin_tiny_equals_timms_at_full_size():
    torch.manual_seed(1)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", num_classes=6).eval()
    ours = SwinTransformer(num_classes=6).eval()
    load_pretrained(ours, theirs.state_dict(), "timm", ["head"])
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


def test_parameters_and_flops_are_those_of_the_paper():
    """Table 1: Swin-T has 28 M parameters (28.29 with 1000 classes) and 4.5 G multiply-adds; and torch's own count."""
    model = SwinTransformer().eval()
    assert sum(p.numel() for p in model.parameters()) == 28_288_354
    assert round(model.flops() / 1e9, 1) == 4.5
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    norms = 3136 * 96 + sum(b.resolution**2 * 2 * b.dim for stage in model.layers for b in stage.blocks)
    norms += sum(m.downsample.resolution**2 * m.downsample.dim for m in model.layers if m.downsample) + 49 * 768
    assert model.flops() - norms == counter.get_total_flops() / 2


def test_checkpointing_gives_the_same_gradients_with_stochastic_depth():
    torch.manual_seed(0)
    model = SwinTransformer(drop_path_rate=0.2, **SMALL).train()
    images, keep = torch.randn(4, 3, 64, 64), model.draw_drop_path(4)
    assert (keep == 0).any()
    gradients = []
    for recompute in (False, True):
        model.use_checkpoint = recompute
        model.zero_grad()
        model(images, keep).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_the_lean_model_has_the_same_logits_and_gradients(dtype, use_checkpoint):
    torch.manual_seed(0)
    images, results = torch.randn(4, 3, 64, 64), []
    weights = SwinTransformer(**SMALL).state_dict()
    for options in ({}, {"selective_checkpoint": True, "use_checkpoint": use_checkpoint}):
        model = SwinTransformer(drop_path_rate=0.2, drop_rate=0.1, **SMALL, **options).train()
        model.load_state_dict(weights)
        keep = model.draw_drop_path(4, torch.Generator().manual_seed(3))
        torch.manual_seed(5)  # of dropout
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits = model(images, keep)
        logits.float().square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for plain, selective_checkpoint in zip(*results, strict=True):
        assert torch.equal(plain, selective_checkpoint)


def test_on_a_gpu_the_bias_of_shifted_windows_is_passed_once_and_not_per_image(monkeypatch):
    """Stage 1 of Swin-T, 32 images: `[1, nW*heads, N, N]` in bf16, 0.9 MiB, where one per image takes 28."""
    passed, layer, mask = [], WindowAttention(96, 7, 3), shifted_window_mask(56, 56, 7, 3)
    with fake_gpu(monkeypatch), torch.autocast("cuda", torch.bfloat16):
        attend = F.scaled_dot_product_attention
        spy = lambda *qkv, attn_mask, scale: passed.append(attn_mask) or attend(*qkv, attn_mask, scale=scale)  # noqa: E731
        monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
        layer, windows = to_gpu(layer), torch.empty(32 * 64, 49, 96, device=CUDA)
        assert layer(windows).shape == layer(windows, mask.to(CUDA)).shape == windows.shape
    assert [tuple(bias.shape) for bias in passed] == [(1, 3, 49, 49), (1, 64 * 3, 49, 49)]
    assert [bias.untyped_storage().nbytes() for bias in passed] == [2 * 3 * 49 * 49, 2 * 64 * 3 * 49 * 49]


def test_a_compiled_forward_copies_the_stochastic_depth_to_the_gpu_once(monkeypatch):
    model = SwinTransformer(**SMALL, drop_path_rate=0.2).train()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with fake_gpu(monkeypatch) as waits:
        model, images = to_gpu(model), torch.empty(2, 3, 64, 64, device=CUDA)
        waits.clear()
        model(images, model.draw_drop_path(2))
    assert waits == ["_to_copy"]


def test_windows_are_taken_and_put_back_by_one_order():
    """Against rolling and cutting; and the gradient against autograd's own for a gather."""
    x = torch.randn(2, 64, 3, requires_grad=True)
    order = window_order(8, 4, 2)
    rolled = torch.roll(x.view(2, 8, 8, 3), (-2, -2), (1, 2))
    got = Reorder.apply(x, order, order.argsort())
    assert torch.equal(got, window_partition(rolled, 4).reshape(2, 64, 3))
    weight = torch.randn_like(got)
    ours, autograds = (torch.autograd.grad(y, x, weight)[0] for y in (got, x.index_select(1, order)))
    assert torch.equal(ours, autograds)


def test_checkpointing_without_given_masks_still_draws_them_once():
    torch.manual_seed(0)
    model = SwinTransformer(drop_path_rate=0.5, **SMALL).train()
    images, results = torch.randn(4, 3, 64, 64), []
    for recompute in (False, True):
        model.use_checkpoint = recompute
        model.zero_grad()
        torch.manual_seed(5)
        model(images).sum().backward()
        results.append(model.patch_embed.proj.weight.grad.clone())
    assert torch.equal(*results)


def test_gathered_stochastic_depth_equals_the_masked_formula():
    torch.manual_seed(0)
    branch, x = torch.nn.Linear(8, 8), torch.randn(6, 3, 8)
    for keep in (torch.tensor([0, 2.0, 0, 2.0, 2.0, 0]), torch.zeros(6), torch.full((6,), 1.25)):
        got = add_branch(x, branch, keep)
        torch.testing.assert_close(got, x + branch(x) * keep[:, None, None])
    branch.zero_grad()
    add_branch(x, branch, torch.zeros(6)).sum().backward()
    assert torch.equal(branch.weight.grad, torch.zeros(8, 8)), "not None, which other ranks could not add up"


def test_stochastic_depth_grows_linearly_and_keeps_the_mean():
    model = SwinTransformer(drop_path_rate=0.4, **SMALL)
    assert model.drop_path_rates == pytest.approx([0, 0.08, 0.16, 0.24, 0.32, 0.4])
    keep = model.draw_drop_path(20000, torch.Generator().manual_seed(0))
    assert keep.shape == (6, 2, 20000)
    torch.testing.assert_close(keep.mean(dim=(1, 2)), torch.ones(6), atol=0.02, rtol=0)
    dropped = (keep == 0).float().mean(dim=(1, 2))
    torch.testing.assert_close(dropped, torch.tensor(model.drop_path_rates), atol=0.01, rtol=0)
    assert torch.equal(keep, model.draw_drop_path(20000, torch.Generator().manual_seed(0)))


def test_windows_come_back_and_hold_neighbours():
    x = torch.arange(2 * 8 * 8 * 3).float().view(2, 8, 8, 3)
    windows = window_partition(x, 4)
    assert torch.equal(windows[1], x[0, :4, 4:]), "the second window is the top right one"
    assert torch.equal(windows.view(2, 64, 3)[:, window_order(8, 4, 0).argsort()], x.view(2, 64, 3))


def test_shift_mask_separates_exactly_the_tokens_that_were_no_neighbours():
    """Second formula: after the roll, two tokens of a window belong together if they are less than a window apart."""
    size, window, shift = 8, 4, 2
    rows = torch.roll(torch.arange(size), -shift)
    grid = torch.stack(torch.meshgrid(rows, rows, indexing="ij"), -1)[None]
    positions = window_partition(grid, window).flatten(1, 2)  # [nW, N, 2], where each token really lies
    distance = (positions[:, :, None] - positions[:, None]).abs().amax(-1)
    expected = torch.where(distance < window, 0.0, float("-inf"))
    assert torch.equal(shifted_window_mask(size, size, window, shift), expected)


class Subnormals(TorchDispatchMode):
    """Inside, `found` collects the operations with a result too small for a normal fp32 number, and how many."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        computed = [] if "empty" in str(operation) else tree_leaves(results)  # empty ones hold what was there before
        for result in computed:
            if isinstance(result, torch.Tensor) and result.dtype is torch.float32:
                size = result.detach().abs()
                count = int(((size > 0) & (size < torch.finfo(torch.float32).tiny)).sum())
                self.found += [(str(operation), count)] if count else []
        return results


def test_a_step_computes_with_no_number_that_slows_a_processor_down():
    """exp(-100), which Microsoft's mask leaves, is subnormal: products with it took four times as long."""
    torch.manual_seed(0)
    model = SwinTransformer(**SMALL).train()
    with Subnormals() as subnormals:
        model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert subnormals.found == []


def test_the_mask_gives_the_logits_of_microsofts():
    torch.manual_seed(0)
    model, images = SwinTransformer(**SMALL).eval(), torch.randn(2, 3, 64, 64)
    logits = model(images)
    masks = [block.attn_mask for layer in model.layers for block in layer.blocks if block.attn_mask is not None]
    for mask in masks:
        mask.clamp_(min=-100)
    assert masks
    assert torch.equal(model(images), logits)


def test_relative_positions_by_hand():
    """Tokens 0..3 of a 2x2 window in raster order; row = (dy + 1) * 3 + dx + 1."""
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_position_index(2).tolist() == expected


def test_patch_merging_takes_microsofts_order():
    layer = PatchMerging(1, 2)
    layer.norm, layer.reduction = torch.nn.Identity(), torch.nn.Identity()
    assert layer(torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])).tolist() == [[[0, 2, 1, 3]]]


def test_a_grid_of_one_window_is_not_shifted_and_other_sizes_are_refused():
    model = SwinTransformer(**SMALL)
    assert [b.shift_size for b in model.layers[0].blocks] == [0, 2]
    assert [b.shift_size for b in model.layers[2].blocks] == [0, 0]
    with pytest.raises(ValueError, match="built for 64"):
        model(torch.zeros(1, 3, 32, 32))


def test_absolute_positions_are_added():
    torch.manual_seed(0)
    model = SwinTransformer(ape=True, patch_norm=False, drop_path_rate=0.0, **SMALL).eval()
    images = torch.randn(1, 3, 64, 64)
    tokens = model.patch_embed(images) + model.absolute_pos_embed
    for layer in model.layers:
        tokens = layer(tokens)
    torch.testing.assert_close(model(images), model.head(model.norm(tokens).mean(1)))
    assert model.absolute_pos_embed.abs().sum() > 0


def test_layers_are_numbered_from_embedding_to_head():
    model = SwinTransformer(**SMALL)
    names = [
        "patch_embed.proj.weight",
        "layers.0.blocks.1.norm1.weight",
        "layers.0.downsample.norm.weight",
        "layers.1.blocks.0.attn.qkv.weight",
        "norm.weight",
        "head.bias",
    ]
    assert [model.layer_index(name) for name in names] == [0, 2, 2, 3, 7, 7]


@pytest.mark.parametrize("selective_checkpoint", [False, True])
def test_a_block_that_nobody_goes_through_has_a_zero_gradient(selective_checkpoint):
    """As in a piece of one image; the other block learns as it does without."""
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=32, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, selective_checkpoint=selective_checkpoint
    ).train()
    keep = torch.ones(2, 2, 3)
    keep[1] = 0
    model(torch.randn(3, 3, 32, 32), keep).square().sum().backward()
    first, second = (model.layers[0].blocks[i].attn.qkv.weight.grad for i in range(2))
    assert first.abs().sum() > 0
    assert torch.equal(second, torch.zeros_like(second))
