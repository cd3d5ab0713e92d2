"""The order of samples: one permutation per epoch, cut into ranks without loss or overlap, resumed anywhere."""

from collections import Counter

from data.build import balancing_weights
from data.loading.samplers import Shard, TrainBatches, eval_batches
from data.loading.split import Photo


def flat(batches):
    return [draw for batch in batches for draw in batch]


def sampler(length=23, batch_size=4, rank=0, world_size=1, seed=0, epoch=0, first=0, weights=None):
    batches = TrainBatches(length, batch_size, Shard(rank, world_size), seed, weights)
    batches.epoch, batches.first = epoch, first
    return batches


def test_an_epoch_is_a_permutation_without_its_last_partial_batch():
    draws = flat(sampler())
    assert [d.position for d in draws] == list(range(20))
    assert len({d.index for d in draws}) == 20
    assert {d.index for d in flat(sampler(length=24))} == set(range(24))
    assert len(sampler()) == 5


def test_the_order_depends_on_seed_and_epoch_alone():
    assert flat(sampler()) == flat(sampler())
    orders = [[d.index for d in flat(sampler(seed=s, epoch=e))] for s, e in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3


def test_two_ranks_take_the_halves_of_every_global_batch():
    one = list(sampler(batch_size=8))
    halves = [list(sampler(batch_size=4, rank=r, world_size=2)) for r in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == one


def test_weighted_draws_follow_the_weights_and_the_seed_alone():
    """Four classes with 1000, 100, 10 and 1 samples are drawn about equally often: a chi-square test by hand."""
    labels = [0] * 1000 + [1] * 100 + [2] * 10 + [3]
    samples = [Photo(str(i), str(i), (c,)) for i, c in enumerate(labels)]
    weights = balancing_weights(samples)
    draws = [d for epoch in range(4) for d in flat(sampler(len(labels), 11, epoch=epoch, weights=weights))]
    counts = Counter(labels[d.index] for d in draws)
    expected = len(draws) / 4
    assert sum((counts[c] - expected) ** 2 / expected for c in range(4)) < 16.3  # 0.1 % of chi-square with 3 degrees
    again = flat(sampler(len(labels), 11, weights=weights))
    assert again == draws[: len(again)]
    halves = [flat(sampler(len(labels), 5, rank=r, world_size=2, weights=weights)) for r in range(2)]
    assert {d.position for d in halves[0]} & {d.position for d in halves[1]} == set()


def test_a_photo_is_drawn_by_the_frequency_of_its_rarest_label():
    samples = [Photo("a", "a", (0,)), Photo("b", "b", (0, 1)), Photo("c", "c", (0,))]
    assert balancing_weights(samples) == [1 / 3, 1, 1 / 3]


def test_skipped_batches_are_those_at_the_start():
    assert list(sampler(first=2)) == list(sampler())[2:]


def test_evaluation_takes_every_sample_once_for_any_number_of_ranks():
    for length in range(1, 20):
        for world in (1, 2, 3):
            taken = [i for r in range(world) for batch in eval_batches(length, 4, Shard(r, world)) for i in batch]
            assert sorted(taken) == list(range(length))
