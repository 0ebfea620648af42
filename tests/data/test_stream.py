"""Batch n depends only on the seed and on n."""

import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e3va.data.stream import BatchStream, SeededDataset, stream_batches
from e3va.utils.seeding import derive_seed, seed_everything


def take(stream, count):
    iterator = iter(stream)
    return [next(iterator) for _ in range(count)]


@settings(max_examples=30, deadline=None)
@given(
    wide=st.lists(st.booleans(), min_size=1, max_size=9),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    start=st.integers(0, 12),
)
def test_a_stream_that_starts_later_is_the_end_of_the_whole_stream(wide, batch_size, seed, start):
    whole = take(BatchStream(wide, batch_size, seed), start + 4)
    assert take(BatchStream(wide, batch_size, seed, start), 4) == whole[start:]
    for batch in whole:
        assert len(batch) == batch_size
        assert len({wide[index] for _, index in batch}) == 1


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 7), seed=st.integers(0, 99))
def test_every_epoch_is_a_permutation(size, seed):
    places = [
        pair for batch in take(BatchStream([True] * size, 1, seed), 3 * size) for pair in batch
    ]
    assert [place for place, _ in places] == list(range(3 * size))
    for epoch in range(3):
        indices = [index for _, index in places[epoch * size : (epoch + 1) * size]]
        assert sorted(indices) == list(range(size))


def test_epochs_and_seeds_differ_in_their_orders():
    batches = [*take(BatchStream([True] * 40, 40, 0), 3), *take(BatchStream([True] * 40, 40, 1), 1)]
    orders = {tuple(index for _, index in batch) for batch in batches}
    assert len(orders) == 4


def test_processes_share_the_stream_without_overlap():
    streams = [BatchStream([True] * 5, 2, 0, rank=rank, world=3) for rank in range(3)]
    seen = [place for stream in streams for batch in take(stream, 5) for place, _ in batch]
    assert sorted(seen) == list(range(30))


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.slow
def test_seeds_reach_every_generator_and_depend_only_on_the_key():
    seed_everything(3, 1)
    first = draws()
    seed_everything(3, 2)
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    seed_everything(3, 1)
    assert draws() == first
    # Not Python's own hash, which differs between processes.
    script = "from e3va.utils.seeding import derive_seed; print(derive_seed('a', 3))"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment
        )
        assert int(done.stdout) == derive_seed("a", 3), done.stderr


def handler_of_interrupts(_):
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_workers_leave_interrupts_to_the_main_process():
    dataset = SeededDataset([0, 1], handler_of_interrupts, 0)
    stream = BatchStream([True] * 2, 1, 0)
    # A background process ignores interrupts from its start; this one must not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert take(stream_batches(dataset, stream), 2) == [[False]] * 2
        assert take(stream_batches(dataset, stream, workers=1), 2) == [[True]] * 2
    finally:
        signal.signal(signal.SIGINT, before)


@settings(max_examples=30, deadline=None)
@given(
    wide=st.lists(st.booleans(), min_size=1, max_size=9),
    share=st.integers(1, 3),
    world=st.integers(2, 4),
    start=st.integers(0, 5),
)
def test_all_processes_together_have_the_batch_of_one(wide, share, world, start):
    """Each process has a consecutive piece of it."""
    one = take(BatchStream(wide, share * world, 0, start), 4)
    streams = [BatchStream(wide, share, 0, start, rank, world) for rank in range(world)]
    for number, pieces in enumerate(zip(*(take(stream, 4) for stream in streams), strict=True)):
        assert [pair for piece in pieces for pair in piece] == one[number]
