"""Two processes average through memory that both see. Threads stand in for them here; tests/system/test_distributed.py
has real ones."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from txl.system import shared_average
from txl.system.shared_average import SharedAverage, share_memory
from txl.system.world import World


@pytest.fixture
def ranks(monkeypatch, tmp_path):
    """Calls a function in two threads, as ranks 0 and 1; their collectives wait for each other."""
    meeting, given = threading.Barrier(2, timeout=20), [None, None]
    rank = threading.local()

    def gather(value):
        given[rank.number] = value
        meeting.wait()
        found = list(given)
        meeting.wait()
        return found

    monkeypatch.setattr(shared_average, "gather_objects", gather)
    monkeypatch.setattr(shared_average, "broadcast_object", lambda value: gather(value)[0])
    monkeypatch.setattr(shared_average, "MEMORY_FILES", str(tmp_path))
    monkeypatch.setattr(shared_average, "CHUNK", 4096)

    def both(work):
        def as_rank(number):
            rank.number = number
            return work(number)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(as_rank, (0, 1)))

    return both


def share(rank: int) -> SharedAverage | None:
    return share_memory(World(rank, 2, rank, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 1024, 5000])
def test_both_get_the_average_to_the_last_bit(ranks, dtype, n, tmp_path):
    """... again and again, with tensors of any length: of several pieces, or of none."""
    given = torch.randn(2, 3, n, dtype=dtype, generator=torch.Generator().manual_seed(n))

    def work(rank: int) -> torch.Tensor:
        exchange, mine = share(rank), given[rank].clone()
        for values in mine:
            exchange.average(values)
        return mine

    for found in ranks(work):
        assert torch.equal(found, given[0] * 0.5 + given[1] * 0.5)
    assert not list(tmp_path.iterdir())  # the name of the memory is gone at once


def test_without_memory_in_common_gloo_averages(ranks, monkeypatch, tmp_path):
    see = shared_average.join_meeting
    monkeypatch.setattr(shared_average, "join_meeting", lambda folder: None)  # a container or machine of its own
    assert ranks(share) == [None, None] and not list(tmp_path.iterdir())
    monkeypatch.setattr(shared_average, "join_meeting", see)
    monkeypatch.setattr(shared_average, "MEMORY_FILES", str(tmp_path / "missing"))
    assert ranks(share) == [None, None]
    monkeypatch.setattr(shared_average, "MEMORY_FILES", str(tmp_path))

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(shared_average.os, "posix_fallocate", full)
    assert ranks(share) == [None, None] and not list(tmp_path.iterdir())
    assert share_memory(World(0, 4, 0, 4)) is None  # the order of the sum would matter


def test_a_link_in_place_of_the_memory_is_not_followed(ranks, monkeypatch, tmp_path):
    """Someone else may write into /dev/shm, too."""
    theirs = tmp_path / "theirs"
    theirs.write_bytes(bytes(4 * 4096))
    make = shared_average.new_meeting

    def replaced():
        folder, meeting = make()
        (folder / "memory").unlink()
        (folder / "memory").symlink_to(theirs)
        return folder, meeting

    monkeypatch.setattr(shared_average, "new_meeting", replaced)
    assert ranks(share) == [None, None] and list(tmp_path.iterdir()) == [theirs]


@pytest.mark.parametrize("survivor", [0, 1])
def test_a_process_whose_peer_has_ended_says_so(ranks, survivor):
    exchanges = ranks(share)
    del exchanges[1 - survivor]
    gc.collect()  # its end of the socket is closed, as when a process ends
    with pytest.raises(RuntimeError, match="the other process, with which gradients are averaged, has ended"):
        exchanges[0].average(torch.zeros(8))
