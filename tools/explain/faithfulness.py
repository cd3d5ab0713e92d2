"""Whether a heat map is faithful to its model: how the probability changes as pixels are added and removed."""

import copy
from collections.abc import Callable

import cv2
import numpy as np
import torch
from pytorch_grad_cam.metrics.road import ROADCombined
from torch import Tensor, nn

from tools.explain.pointing import integrate

STEPS = 16  # number of steps of an insertion or deletion curve
BLUR = 1 / 8  # sigma of the blur that insertion starts from, divided by the side: no lesion stays visible
ROAD_PERCENTILES = [20, 50, 80]  # of the map's values; each takes a second per photo


def measure_faithfulness(
    model: nn.Module, image: Tensor, heat: np.ndarray, index: int, to_probabilities: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float, float]:
    """(insertion, deletion, ROAD) of one map: how the class's probability changes with the pixels.

    Insertion and deletion (Petsiuk et al., arXiv 1806.07421) are areas under the curve of the probability. Insertion
    puts the hottest pixels into a blurred photo (higher is better); deletion makes them grey (lower is better). ROAD
    (Rong et al., arXiv 2202.00449) replaces pixels by values of their neighbours: half the difference between the
    probability without the least and without the most important pixels (higher is better).
    """

    @torch.no_grad()
    def predict(images: Tensor) -> np.ndarray:
        return to_probabilities(model(images).float().cpu().numpy())[:, index]

    def target(logits: Tensor) -> Tensor:
        return torch.from_numpy(to_probabilities(logits.float().cpu().numpy()[None])[0, [index]])[0]

    place = rank_pixels(heat)
    blurred = torch.from_numpy(cv2.GaussianBlur(image.permute(1, 2, 0).cpu().numpy(), (0, 0), BLUR * image.shape[-1]))
    insertion = integrate(predict(_blends(blurred.permute(2, 0, 1).to(image), image, place)))
    deletion = integrate(predict(_blends(image, torch.zeros_like(image), place)))
    # ranks, not values: ROAD cuts at percentiles, and equal values would be removed together
    importance = 1 - place[None].astype(np.float32)
    with torch.random.fork_rng():  # ROAD adds noise to filled pixels
        torch.manual_seed(0)
        road = ROADCombined(ROAD_PERCENTILES)(image[None], importance, [target], model)[0]
    return insertion, deletion, float(road)


def rank_pixels(heat: np.ndarray) -> np.ndarray:
    """Each pixel's rank in the map, divided by the number of pixels: 0 is the hottest."""
    place = np.empty(heat.size)
    place[np.argsort(-heat, axis=None, kind="stable")] = np.arange(heat.size) / heat.size
    return place.reshape(heat.shape)


def _blends(start: Tensor, end: Tensor, place: np.ndarray) -> Tensor:
    """`[STEPS + 1, 3, S, S]`: from `start` to `end`, the pixels replaced in the order of `place`, their ranks."""
    order = torch.from_numpy(place).to(start.device)
    return torch.stack([torch.where(order < step / STEPS, end, start) for step in range(STEPS + 1)])


def shuffle_weights(model: nn.Module) -> nn.Module:
    """A copy with the values of every parameter in random order: the same scale, nothing learned.

    The sanity check of Adebayo et al. (arXiv 1810.03292): a map that is the same for both models shows
    the photo, not what was learned.
    """
    shuffled, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in shuffled.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return shuffled
