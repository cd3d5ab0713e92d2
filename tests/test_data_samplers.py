"""The order of samples: a permutation an epoch, cut into ranks without loss or overlap, and cut off anywhere."""

from data.samplers import EvalBatches, TrainBatches


def flat(batches):
    return [draw for batch in batches for draw in batch]


def sampler(length=23, batch_size=4, rank=0, world_size=1, seed=0, epoch=0, first=0):
    batches = TrainBatches(length, batch_size, rank, world_size, seed)
    batches.epoch, batches.first = epoch, first
    return batches


def test_an_epoch_is_a_permutation_without_its_last_partial_batch():
    draws = flat(sampler())
    assert [d.position for d in draws] == list(range(20))
    assert len({d.index for d in draws}) == 20
    assert {d.index for d in flat(sampler(length=24))} == set(range(24))
    assert len(sampler()) == 5


def test_it_follows_from_seed_and_epoch_alone():
    assert flat(sampler()) == flat(sampler())
    orders = [[d.index for d in flat(sampler(seed=s, epoch=e))] for s, e in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3


def test_two_ranks_take_the_halves_of_every_global_batch():
    one = list(sampler(batch_size=8))
    halves = [list(sampler(batch_size=4, rank=r, world_size=2)) for r in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == one


def test_skipping_batches_is_cutting_them_off():
    assert list(sampler(first=2)) == list(sampler())[2:]


def test_evaluation_takes_everything_once_whatever_the_ranks():
    for length in range(1, 20):
        for world in (1, 2, 3):
            taken = [i for r in range(world) for batch in EvalBatches(length, 4, r, world) for i in batch]
            assert sorted(taken) == list(range(length))
            assert all(
                len(list(EvalBatches(length, 4, r, world))) == len(EvalBatches(length, 4, r, world))
                for r in range(world)
            )
