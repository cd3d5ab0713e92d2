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
