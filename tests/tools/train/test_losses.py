"""The criteria against torchvision, against the papers' formulas in float64, and against each other."""

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from tools.train.losses import build_criterion, class_weights

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(7, 6, generator=GENERATOR) * 3
TARGETS = (torch.rand(7, 6, generator=GENERATOR) < 0.3).float()


def test_focal_is_torchvisions():
    ours = build_criterion("focal", "multi", gamma=1.5)(LOGITS, TARGETS)
    assert torch.isclose(ours, sigmoid_focal_loss(LOGITS, TARGETS, alpha=-1, gamma=1.5, reduction="mean"))
    assert torch.isclose(
        build_criterion("focal", "multi", gamma=0.0)(LOGITS, TARGETS),
        build_criterion("auto", "multi")(LOGITS, TARGETS),
    )


@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), [(4, 0, 0.05), (2, 1, 0.2)])
def test_asymmetric_is_the_papers_equation(gamma_neg, gamma_pos, clip):
    p, y = 1 / (1 + np.exp(-LOGITS.double().numpy())), TARGETS.numpy()
    shifted = np.maximum(p - clip, 0)
    wanted = -(y * (1 - p) ** gamma_pos * np.log(p) + (1 - y) * shifted**gamma_neg * np.log(1 - shifted)).mean()
    criterion = build_criterion("asymmetric", "multi", gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    assert float(criterion(LOGITS, TARGETS)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_sure_logits_have_the_loss_and_the_gradient_of_float64(gamma, clip):
    """Against the formula and autograd in float64, where probabilities are neither 0 nor 1 yet."""
    logits = torch.tensor([[20.0, -20, 30, -30, 3, -3]]).repeat(2, 1)
    targets = torch.tensor([[1.0] * 6, [0.0] * 6])
    exact, ours = logits.double().requires_grad_(), logits.requires_grad_()
    p = exact.sigmoid()
    shifted = (p - clip).clamp(min=0)
    absent = torch.where(p > clip, shifted, 1) ** gamma * torch.log((-exact).sigmoid() if clip == 0 else 1 - shifted)
    terms = targets * (-exact).sigmoid() ** gamma * torch.log(p) + (1 - targets) * absent
    (-terms.mean()).backward()
    loss = build_criterion("asymmetric", "multi", gamma_neg=gamma, gamma_pos=gamma, clip=clip)(ours, targets)
    loss.backward()
    assert float(loss) == pytest.approx(-float(terms.mean()), rel=1e-4)
    assert ours.grad.numpy() == pytest.approx(exact.grad.numpy(), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("name", ["bce", "focal", "asymmetric"])
def test_weights_and_smoothing_mean_the_same_everywhere(name):
    """Linear in the weights; smoothed targets are t (1 - s) + s / 2; large logits stay finite."""
    weights = torch.tensor([1.0, 0, 0, 2, 0, 0])
    parts = [build_criterion(name, "multi", weights=torch.eye(6)[c])(LOGITS, TARGETS) for c in (0, 3)]
    assert torch.isclose(build_criterion(name, "multi", weights=weights)(LOGITS, TARGETS), parts[0] + 2 * parts[1])
    smooth = build_criterion(name, "multi", smoothing=0.2)(LOGITS, TARGETS)
    assert torch.isclose(smooth, build_criterion(name, "multi")(LOGITS, TARGETS * 0.8 + 0.1))
    logits = (LOGITS * 40).requires_grad_()
    build_criterion(name, "multi")(logits, TARGETS).backward()
    assert logits.grad.isfinite().all()


def test_cross_entropy_takes_weights_and_soft_targets():
    targets = torch.tensor([[0.7, 0.3, 0], [0, 0, 1]])
    logits, weights = torch.tensor([[1.0, 2, 0], [0, 0, 3]]), torch.tensor([1.0, 4, 2])
    wanted = -(targets * weights * logits.log_softmax(1)).sum(1).mean()
    assert torch.isclose(build_criterion("ce", "single", weights=weights)(logits, targets), wanted)


def test_bce_by_hand():
    got = build_criterion("bce", "multi", smoothing=0.1)(torch.zeros(1, 2), torch.tensor([[1.0, 0]]))
    assert float(got) == pytest.approx(float(np.log(2)))
    assert torch.isclose(
        build_criterion("auto", "multi")(LOGITS, TARGETS), binary_cross_entropy_with_logits(LOGITS, TARGETS)
    )


def test_class_weights_by_hand():
    assert class_weights([100, 25, 4]).tolist() == pytest.approx([0.1 / 0.8 * 3, 0.2 / 0.8 * 3, 0.5 / 0.8 * 3])
    assert class_weights([0, 1]).tolist() == [1, 1]
