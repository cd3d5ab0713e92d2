"""One epoch of training: a plain loop over steps.

A batch is what the loader gives one rank. A step is one optimizer update and takes `accumulation_steps` batches; the
last step of an epoch may have fewer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

from tools.base.errors import NumericsError
from tools.train.optim import set_train_mode
from tools.train.step import Batch, StepContext, StepResult, train_step

MAX_SKIPS = 20  # steps that fp16 skipped in a row: more than the loss scaler needs to find its scale


@dataclass
class Progress:
    """How far a run is. Saved in last.pth and restored on resume.

    Attributes:
        micro_batch: images that a rank passes through the model at once; less than a batch after memory ran out.
        step: steps done, skipped ones included.
        skipped: steps that fp16 overflow skipped.
        validated: number of validated epochs.
        sums: sums of this epoch: loss x images, images, finite gradient norms, and their number.
        best: best validation score so far; -1 before the first.
    """

    micro_batch: int
    step: int = 0
    skipped: int = 0
    validated: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    best: float = -1.0

    @classmethod
    def from_state_dict(cls, stored: dict, batch_size: int) -> "Progress":
        """From the content of last.pth, which holds every field; the micro-batch is at most `batch_size`."""
        values = {each.name: stored[each.name] for each in fields(cls)}
        return cls(**values | {"micro_batch": min(stored["micro_batch"], batch_size)})

    def add(self, result: StepResult) -> None:
        """Counts a step."""
        norm = (0.0, 0.0) if result.skipped else (result.grad_norm, 1.0)
        self.micro_batch = result.micro_batch
        self.step += 1
        self.skipped += result.skipped
        self.sums = [a + b for a, b in zip(self.sums, (result.loss_sum, result.images, *norm), strict=True)]

    @property
    def mean_loss(self) -> float:
        """Mean training loss of this epoch so far."""
        return self.sums[0] / max(self.sums[1], 1)

    @property
    def mean_norm(self) -> float:
        """Mean gradient norm of this epoch so far."""
        return self.sums[2] / max(self.sums[3], 1)


def train_one_epoch(
    context: StepContext, batches: Iterable[Batch], progress: Progress, num_batches: int, accumulation_steps: int
) -> Iterator[StepResult]:
    """Trains from where `progress` stands to the end of its epoch, yielding after every step.

    At the start of an epoch, a micro-batch that was halved because memory ran out is doubled, up to the batch size.

    Args:
        batches: this rank's remaining batches of the epoch.
        num_batches: batches of the whole epoch.

    Raises:
        NumericsError: at a non-finite loss or gradient, before it reaches the weights.
        ResourceError, UserError: see `tools.train.step.train_step`.
    """
    set_train_mode(context.model)
    batches, steps_per_epoch, skips_in_a_row = iter(batches), -(-num_batches // accumulation_steps), 0
    for number in range(progress.step % steps_per_epoch, steps_per_epoch):
        if number == 0:
            progress.micro_batch = min(2 * progress.micro_batch, context.batch_size)
        size = min(accumulation_steps, num_batches - number * accumulation_steps)
        result = train_step(context, batches, size, progress.step, progress.micro_batch)
        skips_in_a_row = skips_in_a_row + 1 if result.skipped else 0
        if skips_in_a_row > MAX_SKIPS:
            raise NumericsError(
                f"fp16 gradients overflowed {skips_in_a_row} times in a row up to step {progress.step}; "
                "train with AMP.DTYPE bf16 or --amp-opt-level O0"
            )
        progress.add(result)
        yield result
