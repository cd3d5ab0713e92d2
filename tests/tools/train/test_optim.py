"""Who decays, who is frozen, who learns at which rate."""

import pytest
import torch

from models.swin_transformer import SwinTransformer
from tools.base.errors import CheckpointError, UsageError
from tools.train.optim import (
    build_optimizer,
    freeze,
    parameter_groups,
    restore_state,
    set_learning_rate,
    set_train_mode,
)

TABLES = {"absolute_pos_embed", "relative_position_bias_table"}


@pytest.fixture
def model():
    return SwinTransformer(
        img_size=32, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=6, ape=True
    )


def by_name(groups):
    return {name: group for group in groups for name in group["names"]}


def test_decay_is_the_seeds_rule(model):
    """No decay on 1-D parameters, biases, and the two tables; every parameter exactly once."""
    groups = by_name(parameter_groups(model, weight_decay=0.05, no_decay=TABLES))
    assert set(groups) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or any(table in name for table in TABLES)
        assert groups[name]["weight_decay"] == (0.0 if spared else 0.05)


def test_layer_decay_and_head_rate_by_hand(model):
    """Four blocks: embedding 0, blocks 1 to 4, head 5; rate 0.5 to the power of the distance to the head."""
    groups = parameter_groups(model, weight_decay=0, head_scale=10, layer_decay=0.5, layer_index=model.layer_index)
    optimizer = build_optimizer(groups, "adamw", lr=1, eps=1e-8, betas=(0.9, 0.999), momentum=0.9)
    set_learning_rate(optimizer, 0.1)
    rate = {name: group["lr"] for name, group in by_name(optimizer.param_groups).items()}
    assert rate["patch_embed.proj.weight"] == pytest.approx(0.1 / 32)
    assert rate["layers.0.blocks.0.attn.qkv.weight"] == pytest.approx(0.1 / 16)
    assert rate["layers.1.blocks.1.mlp.fc1.bias"] == pytest.approx(0.1 / 2)
    assert rate["norm.weight"] == pytest.approx(0.1)
    assert rate["head.weight"] == pytest.approx(1.0)


def test_frozen_parts_stand_still_and_the_rest_moves(model):
    torch.manual_seed(0)  # of stochastic depth: where it drops all images, a gradient is zero
    freeze(model, ["patch_embed", "layers.0"])
    names = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert names == [n for n, _ in model.named_parameters() if n.startswith(("patch_embed.", "layers.0."))]
    before = {name: p.clone() for name, p in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.1)
    optimizer = build_optimizer(groups, "sgd", lr=0.1, eps=0, betas=(0, 0), momentum=0.9)
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name in names), name


def test_frozen_batch_norm_keeps_its_statistics():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    freeze(model, ["0"])
    set_train_mode(model)
    model(torch.rand(5, 3) + 7)
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    assert model[1].training
    with pytest.raises(UsageError, match="nothing to train"):
        freeze(model, ["0", "1"])
    with pytest.raises(UsageError, match=r"no such part"):
        freeze(model, ["layer.0"])


def moved(model, name, **options):
    """An optimizer of `model` after one update."""
    arguments = {"lr": 0.1, "eps": 1e-8, "betas": (0.9, 0.999), "momentum": 0.9} | options
    optimizer = build_optimizer(parameter_groups(model, weight_decay=0.05), name, **arguments)
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    return optimizer


def test_a_restored_state_keeps_the_groups_of_the_config(model):
    """Weight decay and betas may be changed on purpose; the head may have got a group of its own."""
    stored = moved(model, "adamw").state_dict()
    groups = parameter_groups(model, weight_decay=0.5, head_scale=3)
    optimizer = build_optimizer(groups, "adamw", lr=1, eps=1e-8, betas=(0.5, 0.6), momentum=0)
    restore_state(optimizer, stored, "x.pth", moved=True)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.5}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.6)}
    place = {n: i for g in stored["param_groups"] for n, i in zip(g["names"], g["params"], strict=True)}
    for name, parameter in model.named_parameters():
        for key, value in stored["state"][place[name]].items():
            assert torch.equal(optimizer.state[parameter][key], value), name


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: {**s, "state": {}}, "is empty after updates"),
        (lambda s: {**s, "state": s["state"] | {0: {}}}, "this optim"),
        (lambda s: {**s, "param_groups": s["param_groups"][:1]}, "other parameters"),
        (lambda s: {**s, "state": {k: {"momentum_buffer": v["exp_avg"]} for k, v in s["state"].items()}}, "this optim"),
        (lambda s: {**s, "state": {k: v | {"exp_avg": torch.ones(3, 7)} for k, v in s["state"].items()}}, "this optim"),
    ],
    ids=["empty", "one empty", "frozen", "sgd", "shape"],
)
def test_a_state_that_does_not_fit_is_refused(model, spoil, words):
    optimizer = moved(model, "adamw")
    with pytest.raises(CheckpointError, match=words):
        restore_state(optimizer, spoil(optimizer.state_dict()), "x.pth", moved=True)


def test_sgd_has_a_state_only_with_momentum(model):
    for momentum in (0.0, 0.9):
        optimizer = moved(model, "sgd", momentum=momentum)
        restore_state(optimizer, optimizer.state_dict(), "x.pth", moved=True)
        assert bool(optimizer.state) == (momentum > 0)


def test_the_fused_kernel_moves_weights_as_the_loop_over_them_does(model):
    """Against torch's loop: three steps of AdamW and of SGD."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("adamw", "sgd"):
        ends = []
        for fused in (True, False):
            model.load_state_dict(start)
            groups = parameter_groups(model, weight_decay=0.1)
            optimizer = build_optimizer(groups, name, lr=0.01, eps=1e-8, betas=(0.9, 0.999), momentum=0.9)
            assert optimizer.defaults["fused"], "CPUs have one"
            for group in optimizer.param_groups:
                group["fused"] = fused
            for step in range(3):
                for p in model.parameters():
                    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
                optimizer.step()
            ends.append([p.detach().clone() for p in model.parameters()])
        torch.testing.assert_close(*ends, atol=1e-6, rtol=1e-5)
