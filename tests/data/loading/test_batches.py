"""Batches: bytes and patches in, the model's input out."""

import torch

from data.loading.batches import Normalize, collate
from data.loading.transforms import View
from tools.base.errors import DataError


def test_patches_lie_over_the_normalised_photo_where_they_were_drawn():
    patches = [
        [],
        [(1, 0, torch.full((3, 2, 1), 7.0)), (0, 3, torch.full((3, 1, 1), -7.0))],
        [(2, 2, torch.arange(12.0).view(3, 2, 2))],
    ]
    gray = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, 255, 51)]
    rows = [View(*row) for row in zip(gray, patches, strict=True)]
    batch = collate([(view, torch.eye(3)[index]) for index, view in enumerate(rows)])
    images, targets = Normalize((0.0, 0.2, 0.5), (1.0, 0.5, 0.5))(batch, "cpu")
    assert torch.equal(targets, torch.eye(3))
    torch.testing.assert_close(images[0, :, 0, 0], torch.tensor([0, -0.4, -1]))
    assert images[0].unique().numel() == 3
    one = torch.tensor([1, 1.6, 1])
    expected = one.view(3, 1, 1).expand(3, 4, 4).clone()
    expected[:, 1:3, 0], expected[:, 0, 3] = 7, -7
    torch.testing.assert_close(images[1], expected)
    assert torch.equal(images[2, :, 2:, 2:], torch.arange(12.0).view(3, 2, 2))
    torch.testing.assert_close(images[2, :, 0, 0], torch.tensor([0.2, 0, -0.6]))


def test_a_batch_with_errors_becomes_the_first_of_them():
    view, error = View(torch.zeros(3, 2, 2, dtype=torch.uint8)), DataError("image a")
    assert collate([(view, torch.ones(1)), error, DataError("image b")]) is error
