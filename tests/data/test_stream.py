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
from PIL import Image

from e3va import UserError
from e3va.data.images import read_image
from e3va.data.label_maps import read_label_map
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


SMALL_MEMORY = """
import sys, torch
from e3va import UserError
from e3va.data.stream import BatchStream, SeededDataset, stream_batches

dataset = SeededDataset([0, 1, 2], lambda number: torch.full((700, 1000), number), 0)
batches = stream_batches(dataset, BatchStream([True] * 3, 2, 0), workers=2)
try:
    for _, batch in zip(range(4), batches):
        print([int(image.sum()) // 700_000 for image in batch], flush=True)
except UserError as error:
    print(f"error: {error.line}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "1m", "60m"])
def test_batches_arrive_whatever_the_size_of_shared_memory(size):
    """An image has 5.3 MiB; torch would wait without an end. Locks do not fit into 4 KiB."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine does not allow a /dev/shm of our own")
    command = f'{mount} && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, sys.executable, SMALL_MEMORY],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "Traceback" not in done.stdout + done.stderr
    if size == "4k":
        assert done.stdout.startswith("error: ") and "--workers 0" in done.stdout
        return
    order = take(BatchStream([True] * 3, 2, 0), 4)
    expected = [str([index for _, index in batch]) for batch in order]
    assert done.stdout.splitlines() == expected
    assert len(done.stderr.splitlines()) == (size == "1m")  # a note, once
    assert size == "60m" or "/dev/shm has 1 MiB" in done.stderr


def test_a_mistake_in_a_worker_process_is_one_line(tmp_path):
    Image.new("RGB", (4, 3), "red").save(tmp_path / "a.png")
    for read in (read_image, read_label_map):  # a missing image, and colors as a label map
        name = "gone.png" if read is read_image else "a.png"
        dataset = SeededDataset([tmp_path / name], read, 0)
        batches = stream_batches(dataset, BatchStream([True], 1, 0), workers=1)
        with pytest.raises(UserError) as caught:
            next(batches)
        assert str(tmp_path / name) in caught.value.line
        assert "Traceback" not in caught.value.line and "File" not in caught.value.line


def test_a_killed_worker_process_is_one_line():
    dataset = SeededDataset([0], lambda _: os.kill(os.getpid(), signal.SIGKILL), 0)
    with pytest.raises(UserError, match="--workers 0"):
        next(stream_batches(dataset, BatchStream([True], 1, 0), workers=1))
