"""Steps of two and of three ranks, of which one runs out of memory, fails, is late or is killed at any point."""

import itertools
import os
import time
from pathlib import Path

import pytest
import torch
from runs import warm_ranks
from torch import nn

from tools.base.errors import as_user_error
from tools.runtime.distributed import Ranks, process_group, ranks_from_environment
from tools.runtime.precision import NativePrecision
from tools.train.draws import Draws
from tools.train.optim import build_optimizer, parameter_groups
from tools.train.step import StepContext, train_step

CPU = torch.device("cpu")
STEPS, BATCHES, ROWS = 3, 2, 12  # batches of a step, images of a global batch
PLACES = ("loading", "copy", "forward", "backward", "optimizer")
NO_MEMORY = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "driver": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cudnn 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "engine": RuntimeError("GET was unable to find an engine to execute this computation"),
    "host": MemoryError(),
}
FAULTS = {**NO_MEMORY, "bug": ZeroDivisionError("division by zero")}
CASES = [
    *itertools.product(PLACES, ("torch", "bug", "late")),
    *itertools.product(("forward",), NO_MEMORY),
]


class Net(nn.Module):
    """`bonus` has a gradient on the ranks whose images want it, `unused` on none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, 2)
        self.bonus, self.unused = nn.Linear(5, 2), nn.Linear(3, 3)

    def forward(self, images):
        out = self.head(torch.tanh(self.first(images)))
        wanted = images[:, 0] > 1.5
        return out.index_add(0, wanted.nonzero()[:, 0], self.bonus(images[wanted])) if wanted.any() else out


def global_batch(step, number):
    generator = torch.Generator().manual_seed(10 * step + number)
    return torch.randn(ROWS, 5, generator=generator), torch.rand(ROWS, 2, generator=generator)


def steps_of(ranks, place="", act=lambda: None, reduce_dtype=None):
    """The results and the weights of three steps; `act()` is called in the second step, at its second batch."""
    model, now = Net(), {"step": 0, "batch": 0}
    groups = parameter_groups(model, weight_decay=0.1)
    optimizer = build_optimizer(groups, "adamw", lr=0.01, eps=1e-8, betas=(0.9, 0.999), momentum=0.9)

    def maybe(here, last_batch=True):
        if here == place and now["step"] == 1 and (not last_batch or now["batch"] == BATCHES - 1):
            act()

    def load():
        for step, number in itertools.product(range(STEPS), range(BATCHES)):
            now.update(step=step, batch=number)
            maybe("loading")
            size = ROWS // ranks.world_size
            yield tuple(part[ranks.rank * size :][:size] for part in global_batch(step, number))

    def draw(step, number):
        now.update(step=step, batch=number)
        return Draws(lambda images, targets: (images, targets), None, 0)

    def copy(batch, _device):
        maybe("copy")
        return batch

    model.first.register_forward_pre_hook(lambda *_: maybe("forward"))
    model.first.weight.register_hook(lambda _grad: maybe("backward"))
    optimizer.register_step_pre_hook(lambda *_: maybe("optimizer", last_batch=False))
    criterion, precision = nn.functional.mse_loss, NativePrecision("cpu", None)
    more = {"to_device": copy, "ranks": ranks, "clip_grad": 1.0, "reduce_dtype": reduce_dtype}
    context = StepContext(model, criterion, optimizer, precision, CPU, draw, lambda _s: 0.01, ROWS, **more)
    batches, micro_batch, results = load(), ROWS // ranks.world_size, []
    for step in range(STEPS):
        result = train_step(context, batches, BATCHES, step, micro_batch)
        micro_batch = result.micro_batch
        results.append((result.images, result.micro_batch, result.loss))
    return results, model.state_dict()


def outcome(ranks, place, fault):
    """What a rank has of a case: (results, weights), or the exit code and the line of the error."""
    acted = []

    def act():
        if ranks.rank == ranks.world_size - 1 and not acted:
            acted.append(1)
            if fault == "late":
                time.sleep(0.3)  # this is the fault itself
            elif fault == "killed":
                os._exit(9)
            else:
                raise FAULTS[fault]

    try:
        return steps_of(ranks, place, act)
    except Exception as raised:
        error = as_user_error(raised)
        return error.exit_code, str(error)


def play(argv):
    """A rank of all cases, one after the other in one process group: after every fault the ranks are still in step."""
    folder, cases = Path(argv[0]), argv[1:] or [f"{place}/{fault}" for place, fault in CASES]
    ranks = ranks_from_environment()
    with process_group(ranks, "gloo", CPU, 60):
        found = {case: outcome(ranks, *case.split("/")) for case in cases}
        found["bf16"] = steps_of(ranks, reduce_dtype=torch.bfloat16) if len(argv) == 1 else None
    torch.save(found, folder / f"rank{ranks.rank}.pt")
    return 0


@pytest.fixture(scope="module", params=[2, 3])
def played(request, tmp_path_factory):
    """Per rank: case -> outcome."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = warm_ranks(folder, *[[str(folder)]] * request.param, body=play)
    assert [rank.wait() for rank in ranks] == [0] * request.param, ranks[0].errors
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone():
    """The same steps in one process, to which nothing happens."""
    return steps_of(Ranks())


def assert_equal_to(alone, found, micro_batch):
    results, weights = found
    for (images, _, loss), (ours, pieces, our_loss) in zip(alone[0], results, strict=True):
        assert (ours, our_loss) == (images, pytest.approx(loss, abs=1e-4))
        assert pieces in micro_batch
    torch.testing.assert_close(weights, alone[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("fault", NO_MEMORY)
def test_memory_that_runs_out_on_one_rank_halves_the_micro_batch_of_all(played, alone, fault):
    size = ROWS // len(played)
    for rank in played:
        assert_equal_to(alone, rank[f"forward/{fault}"], {size, size // 2})
        assert rank[f"forward/{fault}"][0][-1][1] == size // 2


@pytest.mark.parametrize("place", ["copy", "backward"])
def test_wherever_it_runs_out_no_image_is_lost(played, alone, place):
    size = ROWS // len(played)
    for rank in played:
        assert_equal_to(alone, rank[f"{place}/torch"], {size, size // 2})


@pytest.mark.parametrize("place", PLACES)
def test_a_late_rank_is_waited_for(played, alone, place):
    for rank in played:
        assert_equal_to(alone, rank[f"{place}/late"], {ROWS // len(played)})


@pytest.mark.parametrize(
    ("place", "fault"), [*((place, "bug") for place in PLACES), ("loading", "torch"), ("optimizer", "torch")]
)
def test_any_other_failure_ends_all_ranks_at_the_next_vote(played, place, fault):
    *others, (code, line) = (rank[f"{place}/{fault}"] for rank in played)
    assert "division by zero" in line if fault == "bug" else line.startswith("out of memory")
    assert code == (1 if fault == "bug" else 5)
    for rank, other in enumerate(others):
        wanted = f"rank {rank} stops because rank {len(others)} failed; see the error of rank {len(others)}"
        assert other == (code, wanted)


def test_gradients_that_are_summed_in_bf16_are_nearly_the_same_and_the_same_on_every_rank(played, alone):
    first, *others = (rank["bf16"][1] for rank in played)
    for other in others:
        torch.testing.assert_close(other, first, atol=0, rtol=0)
    torch.testing.assert_close(first, alone[1], atol=0.02, rtol=0)  # three AdamW steps of 0.01
    assert not torch.equal(first["head.weight"], alone[1]["head.weight"])


def test_a_parameter_without_a_gradient_does_not_decay(played, alone):
    for weights in (alone[1], *(rank["copy/late"][1] for rank in played)):
        torch.testing.assert_close(weights["unused.weight"], Net().unused.weight.data, atol=0, rtol=0)
        assert not torch.equal(weights["bonus.weight"], Net().bonus.weight)


@pytest.mark.parametrize("place", PLACES)
def test_a_rank_that_is_killed_ends_the_others_at_once(tmp_path, place, times):
    for count in (2, 3)[-times(1, 2) :]:
        folder = tmp_path / str(count)
        folder.mkdir()
        ranks = warm_ranks(folder, *[[str(folder), f"{place}/killed"]] * count, body=play)
        assert [rank.wait() for rank in ranks] == [0] * (count - 1) + [9], ranks[0].errors
        for rank in range(count - 1):
            code, line = torch.load(folder / f"rank{rank}.pt")[f"{place}/killed"]
            assert (code, line.split(":")[0]) == (8, "another rank is gone")
