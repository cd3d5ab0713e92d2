"""How many images fit into a given amount of memory, and how the update keeps its size when fewer do. Arithmetic only.

What an image and the weights take is measured by those who have a model (`tools/bench/memory.py`).
"""

from tools.errors import ResourceError

MULTIPLE = 8  # of images, that matrix units are filled with


def largest_batch(image_bytes: float, fixed_bytes: float, budget_bytes: float) -> int:
    """Images whose activations fit beside what does not depend on their number; a multiple of 8 from 8 on.

    Args:
        image_bytes: activations of one image.
        fixed_bytes: weights, gradients, the optimizer's state, the moving average.

    Raises:
        ResourceError: when not even one image fits.
    """
    fitting = int((budget_bytes - fixed_bytes) // image_bytes)
    if fitting < 1:
        raise ResourceError(
            f"one image does not fit into {budget_bytes / 2**30:.2f} GiB: weights and optimizer take "
            f"{fixed_bytes / 2**30:.2f}, an image {image_bytes / 2**30:.3f}; use a smaller model, a larger budget, or "
            "--use-checkpoint"
        )
    return fitting // MULTIPLE * MULTIPLE or fitting


def cut_batch(effective: int, largest: int, multiple: int = 1) -> tuple[int, int]:
    """(images of a batch, batches of an update) of at most `largest` images, `effective` in all.

    The largest divisor, or one that is a multiple of 8 where that costs less than half of it.

    Args:
        multiple: what the batch must be a multiple of: 2 where images are mixed in pairs.

    Raises:
        ResourceError: when no batch of at most `largest` images divides `effective`.
    """
    fitting = [n for n in range(multiple, min(effective, largest) + 1, multiple) if effective % n == 0]
    if not fitting:
        raise ResourceError(
            f"an update of {effective} images cannot be cut into batches of at most {largest}"
            f"{f' that are multiples of {multiple}' if multiple > 1 else ''}; choose another --batch-size"
        )
    even = [n for n in fitting if n % MULTIPLE == 0 and 2 * n > fitting[-1]]
    batch = even[-1] if even else fitting[-1]
    return batch, effective // batch
