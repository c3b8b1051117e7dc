"""Seeds, and torch's global generator."""

import threading

import pytest
import torch

from robust_ensembles.training import derive_seed, preserve_global_rng, seeded_global_rng


def test_streams_differ():
    places = [
        (seed, stream, *position)
        for seed in (0, 1, 2**31 - 1)
        for stream in ("order", "augmentation", "attack", "layers")
        for position in ((0,), (1,), (2,))
    ]
    seeds = [derive_seed(*place) for place in places]
    assert len(set(seeds)) == 3 * 4 * 3
    assert seeds == [derive_seed(*place) for place in places]
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_seeds_are_stable():
    """A restart, in another process, draws the same numbers."""
    assert derive_seed(0, "order", 3) == 315563030559611140


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_preserved(error):
    before = torch.get_rng_state()
    try:
        with preserve_global_rng():
            torch.rand(3)
            with preserve_global_rng():
                torch.manual_seed(5)
            assert not torch.equal(torch.get_rng_state(), before)
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded():
    before = torch.get_rng_state()
    with seeded_global_rng(3):
        first = torch.rand(2)
    with seeded_global_rng(3):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded_global_rng(4):
        assert not torch.equal(torch.rand(2), first)


def test_overlapping_threads_restore_the_first_state():
    """A enters, B enters, A leaves, B leaves."""
    before = torch.get_rng_state()
    a_is_in, b_is_in, a_is_out = (threading.Event() for _ in range(3))

    def a():
        with preserve_global_rng():
            torch.rand(3)
            a_is_in.set()
            b_is_in.wait(5)
        a_is_out.set()

    def b():
        a_is_in.wait(5)
        with preserve_global_rng():
            torch.rand(3)
            b_is_in.set()
            a_is_out.wait(5)
            torch.rand(3)

    threads = [threading.Thread(target=target) for target in (a, b)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_blocks_do_not_mix():
    def draws(seed):
        with seeded_global_rng(seed):
            return torch.cat([torch.rand(1) for _ in range(200)])

    expected, found = [draws(seed) for seed in range(4)], {}

    def run(seed):
        found[seed] = [draws(seed) for _ in range(10)]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(d, expected[seed]) for seed in range(4) for d in found[seed])
