"""Token files become batches: every token once, the same for any number of ranks, restored exactly."""

import numpy as np
import pytest
import torch

from txl.data.batches import TokenStream, draw_segment_lengths
from txl.errors import ConfigError


def stream(n=103, batch_size=4, tgt_len=7, **changes):
    return TokenStream(np.arange(n, dtype=np.int32), batch_size, tgt_len, **changes)


def targets(source, epoch=1):
    return torch.cat([source.batch(epoch, i).target for i in range(source.n_batches)], dim=1)


def test_an_epoch_predicts_every_token_but_each_columns_first_once():
    source = stream()
    assert (source.n_rows, source.n_batches) == (25, 4)
    expected = torch.arange(100).view(4, 25)
    assert torch.equal(targets(source), expected[:, 1:])
    batch = source.batch(1, 3)
    assert batch.input.tolist() == expected[:, 21:24].tolist() and batch.input.dtype == torch.int64


@pytest.mark.parametrize(
    "changes", [{}, {"roll_seed": 5}, {"warmup_len": 9}, {"ext_len": 4}, {"varlen_seed": 5}, {"shuffle_len": 9}]
)
def test_ranks_hold_the_columns_of_the_one_stream(changes):
    whole = stream(**changes)
    parts = [stream(columns=columns, **changes) for columns in (range(0, 1), range(1, 4), range(4, 4))]
    for epoch, index in ((1, 0), (3, 2)):
        for field in ("input", "target"):
            batches = [getattr(part.batch(epoch, index), field) for part in parts]
            assert torch.equal(torch.cat(batches), getattr(whole.batch(epoch, index), field))


def test_rolling_is_a_function_of_seed_and_epoch_alone():
    first, second = stream(roll_seed=5), stream(roll_seed=5)
    forward = [first.batch(epoch, 1).input for epoch in (1, 2, 3)]
    backward = [second.batch(epoch, 1).input for epoch in (3, 2, 1)]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert not torch.equal(forward[0], forward[1])
    assert not torch.equal(forward[0], stream(roll_seed=6).batch(1, 1).input)
    columns = torch.cat([first.batch(2, i).input for i in range(first.n_batches)], dim=1)
    last = first.batch(2, first.n_batches - 1).target[:, -1:]
    assert torch.equal(torch.cat([columns, last], dim=1).sort(dim=1).values, torch.arange(100).view(4, 25))


def test_shuffling_moves_whole_pieces_and_loses_no_token():
    source = stream(n=100, batch_size=1, tgt_len=10, shuffle_len=8)
    for epoch in (1, 2, 3):
        text = torch.cat([source.batch(epoch, 0).input[:, :1], targets(source, epoch)], dim=1)[0]
        pieces = text[:96].view(12, 8)
        assert torch.equal(pieces, pieces[:, :1] + torch.arange(8))  # each is a piece of the text
        assert sorted(pieces[:, 0].tolist()) == list(range(0, 96, 8))
        assert text[96:].tolist() == [96, 97, 98, 99]


def test_shuffling_is_a_function_of_seed_and_epoch_alone():
    first, second = (stream(n=1003, shuffle_len=16, shuffle_seed=3) for _ in range(2))
    forward = [targets(first, epoch).tolist() for epoch in (1, 2, 3)]
    assert forward == [targets(second, epoch).tolist() for epoch in (3, 2, 1)][::-1]
    assert forward[0] != forward[1] != forward[2]
    assert targets(stream(n=1003, shuffle_len=16, shuffle_seed=4)).tolist() != forward[0]


def test_a_text_shorter_than_a_piece_stays_as_it_is():
    assert torch.equal(targets(stream(shuffle_len=500)), targets(stream()))


@pytest.mark.parametrize("changes", [{}, {"roll_seed": 1}, {"ext_len": 3}])
def test_segments_of_drawn_length_still_hold_every_token_once(changes):
    source = stream(n=4003, tgt_len=30, varlen_seed=9, **changes)
    for epoch in (1, 2, 1):
        edges = source.edges(epoch)
        batches = [source.batch(epoch, i) for i in range(len(edges) - 1)]
        lengths = [batch.target.shape[1] for batch in batches]
        assert min(lengths[:-1]) >= 5 and max(lengths) <= 45 and len(set(lengths)) > 5
        for before, batch in zip([None, *batches[:-1]], batches, strict=True):
            lead = 0 if before is None else changes.get("ext_len", 0)
            assert batch.input.shape[1] == batch.target.shape[1] + lead
        read = torch.cat([batch.target for batch in batches], dim=1)
        first = batches[0].input[:, :1]
        assert torch.equal(torch.cat([first, read], dim=1).sort(dim=1).values, torch.arange(4000).view(4, 1000))


def test_drawn_lengths_are_a_function_of_seed_and_epoch_alone():
    first, second = (stream(n=4003, tgt_len=30, varlen_seed=9) for _ in range(2))
    forward = [first.edges(epoch).tolist() for epoch in (1, 2, 3)]
    assert forward == [second.edges(epoch).tolist() for epoch in (3, 2, 1)][::-1]
    assert forward[0] != forward[1] != forward[2]
    assert stream(n=4003, tgt_len=30, varlen_seed=8).edges(1).tolist() != forward[0]


def test_lengths_are_drawn_around_the_segments_and_now_and_then_around_its_half():
    lengths = draw_segment_lengths(100, 5 * 100_000, [0])
    assert lengths.sum() >= 5 * 100_000 and 20 < lengths.min() < lengths.max() == 115
    halved = lengths < 75
    assert abs(halved.mean() - 0.05) < 0.003
    for part, middle in ((lengths[halved], 50), (lengths[~halved], 100)):
        assert abs(part.mean() - middle) < 0.3 and abs(part.std() - 5) < 0.2
    assert draw_segment_lengths(6, 1000, [0]).min() == 5


@pytest.mark.parametrize("mem_len", [1, 7, 12, 60])
def test_warming_segments_lead_to_each_columns_first_token(mem_len):
    source = stream(warmup_len=mem_len)
    warming = [source.batch(1, i) for i in range(source.n_batches) if not source.batch(1, i).counted]
    assert len(warming) == -(-mem_len // 7)
    read = torch.cat([batch.input for batch in warming], dim=1)
    before = torch.arange(-read.shape[1], 0) + 25 * torch.arange(4)[:, None]
    assert torch.equal(read, before % 100)
    assert targets(source)[:, read.shape[1] :].tolist() == torch.arange(100).view(4, 25)[:, 1:].tolist()


def test_a_position_among_drawn_lengths_is_restored_and_counts_its_own_epoch():
    source = stream(n=403, tgt_len=12, varlen_seed=4, roll_seed=4)
    seen, places = [], []
    for _ in range(30):
        seen.append(source.next())
        places.append((source.last_epoch, source.last_index, source.n_batches))
    counts = {epoch: n for epoch, _, n in places}
    assert len(set(counts.values())) > 1  # epochs differ in it
    assert [index for epoch, index, _ in places if epoch == 2] == list(range(counts[2]))
    for stop in (3, counts[1], counts[1] + 2):
        other, state = stream(n=403, tgt_len=12, varlen_seed=4, roll_seed=4), stream(n=403, tgt_len=12, varlen_seed=4)
        for _ in range(stop):
            state.next()
        other.load_state_dict(state.state_dict())
        assert all(torch.equal(other.next().input, batch.input) for batch in seen[stop:])


def test_a_position_is_restored_and_tells_the_last_batch():
    source = stream(roll_seed=1)
    seen = [source.next() for _ in range(9)]
    assert (source.epoch, source.index, source.last_epoch, source.last_index) == (3, 1, 3, 0)
    again = stream(roll_seed=1)
    for _ in range(4):
        again.next()
    assert (again.epoch, again.index, again.last_epoch, again.last_index) == (2, 0, 1, 3)
    other = stream(roll_seed=1)
    other.load_state_dict(again.state_dict())
    assert other.state_dict() == {"epoch": 2, "index": 0}
    for batch in seen[4:]:
        assert torch.equal(other.next().target, batch.target)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch_size": 0}, ["batch_size=0", "1 or more"]),
        ({"tgt_len": -1}, ["tgt_len=-1", "1 or more"]),
        ({"ext_len": -1}, ["ext_len=-1", "0 or more"]),
        ({"warmup_len": -1}, ["mem_len=-1", "0 or more"]),
        ({"tgt_len": 25}, ["batch_size=4", "tgt_len=25", "needs 104 tokens", "has 103", "batch_size to at most 3"]),
        ({"batch_size": 200}, ["batch_size=200", "needs 1,600", "batch_size to at most 12"]),
        ({"n": 5}, ["needs 32 tokens", "has 5", "give more text"]),
        ({"n": 0}, ["has 0"]),
    ],
)
def test_lengths_that_do_not_fit_are_refused_with_a_remedy(changes, words):
    with pytest.raises(ConfigError) as error:
        stream(**changes)
    assert all(word in str(error.value) for word in words), error.value


def test_the_segment_is_as_long_as_the_stream_allows():
    assert stream(n=32).n_batches == 1 and stream(n=32).batch(1, 0).target.shape == (4, 7)


def test_a_split_that_is_too_short_is_named():
    with pytest.raises(ConfigError, match="the valid split has 4"):
        stream(n=4, name="valid split")
