"""Photos to measure with where none are given: drawn leaves, in the sizes and with the detail of real ones."""

from pathlib import Path

CODES = ("000001", "000010", "000100", "001000", "010000", "100000")


def draw_photo(width: int, height: int, seed: int):
    """A leaf as an RGB Image, with grain and texture; equal arguments give equal pixels.

    Of 4000x2672 pixels it is as hard to make small as the real ones: decoded at a quarter 54 dB, at an eighth below 50.
    """
    import cv2
    import numpy as np
    from PIL import Image

    from data.sample.leaves import draw_leaf

    rng = np.random.default_rng(seed)
    leaf = draw_leaf(("scab",), (seed,)).pixels.astype(np.float32)
    photo = cv2.resize(leaf, (width, height), interpolation=cv2.INTER_CUBIC)
    for block, strength in ((1, 2.5), (3, 2.5), (9, 9), (27, 6)):  # pixels, grey levels
        grain = rng.normal(0, strength, (-(-height // block), -(-width // block), 1)).astype(np.float32)
        photo += cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8))


def write_photos(folder: Path, count: int, width: int, height: int, quality: int) -> list[Path]:
    """Draws `count` JPEGs into `folder`."""
    from data.images import encode

    folder.mkdir(parents=True)
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for seed, path in enumerate(paths):
        path.write_bytes(encode(draw_photo(width, height, seed), path.name, quality))
    return paths
