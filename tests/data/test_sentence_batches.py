"""Sentences without an order: shuffled anew each epoch, a file at a time, the same wherever one begins to read."""

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

from tests.support.configurations import composed
from tests.support.made_data import LM1B, write_lm1b
from txl.data.corpus import open_corpus
from txl.data.sentence_batches import SentenceStream, shuffle_sentences, training_stream
from txl.errors import ConfigError

EOS = 0
RNG = np.random.default_rng(0)


def sentences(number, file):
    """Sentences of one file, each of its own first word, so that all can be told apart."""
    return [(100 * file + i + 1, *RNG.integers(1000, 1100, RNG.integers(0, 6)).tolist(), EOS) for i in range(number)]


FILES = [sentences(number, file) for file, number in enumerate((60, 40, 50))]
SHARDS = [sum(map(len, file)) for file in FILES]
TOKENS = np.array([EOS, *itertools.chain.from_iterable(itertools.chain(*FILES))], np.int32)


def stream(seed=7, tokens=TOKENS, shards=SHARDS, **changes):
    return SentenceStream(tokens, shards, EOS, seed, **{"batch_size": 3, "tgt_len": 5} | changes)


def read(source, epoch):
    """Of an epoch, for every file in the order of reading: [B, segments * T + 1]."""
    batches = [source.batch(epoch, i) for i in range(source.n_batches)]
    seams = [torch.equal(b.input[:, 0], a.target[:, -1]) for a, b in itertools.pairwise(batches)]
    breaks = [0, *(i for i, goes_on in enumerate(seams, start=1) if not goes_on), len(batches)]
    parts = [batches[begin:end] for begin, end in itertools.pairwise(breaks)]
    return [torch.cat([part[0].input[:, :1], *(batch.target for batch in part)], dim=1).numpy() for part in parts]


def whole_sentences(columns):
    """Those that stand in a column with both their sides."""
    found = []
    for column in columns.tolist():
        ends = [i for i, token in enumerate(column) if token == EOS]
        found += [tuple(column[a + 1 : b + 1]) for a, b in itertools.pairwise(ends)]
    return found


def test_an_epoch_has_every_sentence_at_most_once_whole_and_nearly_all_of_them():
    known = {sentence: file for file, group in enumerate(FILES) for sentence in group}
    found = Counter(itertools.chain.from_iterable(map(whole_sentences, read(stream(), 1))))
    assert set(found.values()) == {1} and found.keys() <= known.keys()
    lost = len(known) - len(found)  # per file: one that each column cuts, and what no segment has room for
    assert lost <= 3 * (3 + 3 * 5 / 2)


def test_files_and_sentences_come_in_another_order_in_every_epoch():
    source = stream()
    epochs = [[whole_sentences(columns) for columns in read(source, epoch)] for epoch in (1, 2, 3, 4)]
    orders = [[file[0][0] // 100 for file in epoch] for epoch in epochs]
    assert all(sorted(order) == [0, 1, 2] for order in orders) and len({tuple(order) for order in orders}) > 1
    assert all(len({sentence[0] // 100 for sentence in file}) == 1 for epoch in epochs for file in epoch)
    first = [next(file for file in epoch if file[0][0] < 100) for epoch in epochs]  # the first file, in each
    assert len({tuple(file) for file in first}) == 4
    assert [whole_sentences(columns) for columns in read(stream(seed=8), 1)] != epochs[0]


def test_any_position_is_the_same_from_the_beginning_or_from_nowhere():
    source, jumping = stream(), stream()
    straight = [source.next() for _ in range(3 * source.n_batches)]
    for step in (50, 3, 77, 4, 51):
        epoch, index = step // source.n_batches + 1, step % source.n_batches
        assert torch.equal(jumping.batch(epoch, index).target, straight[step].target)
    resumed = stream()
    resumed.load_state_dict({"epoch": 2, "index": 5})
    assert torch.equal(resumed.next().input, straight[source.n_batches + 5].input)
    assert (resumed.last_epoch, resumed.last_index, resumed.state_dict()) == (2, 5, {"epoch": 2, "index": 6})


@pytest.mark.parametrize("changes", [{}, {"roll": True}, {"varlen": True, "tgt_len": 12}])
def test_ranks_hold_the_columns_of_the_one_stream(changes):
    whole = stream(ext_len=2, **changes)
    parts = [stream(ext_len=2, columns=columns, **changes) for columns in (range(0, 1), range(1, 3), range(3, 3))]
    for epoch, index in ((1, 0), (1, 7), (2, 10)):
        for field in ("input", "target"):
            batches = [getattr(part.batch(epoch, index), field) for part in parts]
            assert torch.equal(torch.cat(batches), getattr(whole.batch(epoch, index), field))


def test_rolling_turns_the_columns_of_every_file():
    plain, rolled = read(stream(), 1), [stream(roll=True).batch(1, i).target for i in range(stream().n_batches)]
    tokens = Counter(torch.cat(rolled, dim=1).flatten().tolist())
    assert tokens != Counter() and sum(tokens.values()) == sum(columns[:, 1:].size for columns in plain)
    assert not torch.equal(rolled[0], stream().batch(1, 0).target)


def test_drawn_lengths_are_of_every_file_and_epoch_and_cover_the_columns():
    source = stream(varlen=True, tgt_len=12)
    epochs = [[source.batch(e, i).target.shape[1] for i in range(source.segments(e))] for e in (1, 2, 3)]
    assert {sum(lengths) for lengths in epochs} == {sum((1 + size) // 3 - 1 for size in SHARDS)}
    assert len({tuple(lengths) for lengths in epochs}) == 3
    seen = [source.next() for _ in range(len(epochs[0]) + 4)]
    again = stream(varlen=True, tgt_len=12)
    again.load_state_dict({"epoch": 2, "index": 3})
    assert torch.equal(again.next().target, seen[-1].target) and again.n_batches == len(epochs[1])


def test_every_segment_is_full_and_an_epoch_has_always_as_many():
    source = stream()
    assert {source.batch(epoch, i).target.shape for epoch in (1, 2) for i in range(source.n_batches)} == {(3, 5)}
    assert source.n_batches == sum((1 + size) // 3 // 5 - ((1 + size) // 3 % 5 == 0) for size in SHARDS)


def test_only_the_open_file_is_in_memory(tmp_path):
    shards = [40_000, 60_000, 50_000]
    tokens = np.ones(1 + sum(shards), np.int32)
    tokens[::10] = EOS
    tokens.tofile(tmp_path / "train.bin")
    mapped = np.memmap(tmp_path / "train.bin", np.int32, "r")
    source = stream(tokens=mapped, shards=shards, batch_size=10, tgt_len=100)
    tracemalloc.start()  # counts NumPy's arrays, not what is mapped
    try:
        held = [(source.next(), tracemalloc.get_traced_memory()[0])[1] for _ in range(source.n_batches)]
    finally:
        tracemalloc.stop()
    open_file = mapped.itemsize * max(shards)
    assert open_file < max(held) < 1.2 * open_file


def test_shuffling_keeps_sentences_whole():
    tokens = np.array([0, 5, 6, 0, 0, 7, 0, 8, 8, 8, 0])  # the second one is empty
    found = shuffle_sentences(tokens, 0, np.random.RandomState(1))
    assert found[0] == 0 and tokens.tolist() != found.tolist()
    text = " ".join(map(str, found[1:]))
    assert sorted(part.split() for part in text.split("0")[:-1]) == [[], ["5", "6"], ["7"], ["8", "8", "8"]]


def test_a_file_that_does_not_fill_a_segment_is_named():
    with pytest.raises(ConfigError, match="batch_size=30 with tgt_len=9 needs 300 tokens .* file 2 of 3 .* lower"):
        stream(batch_size=30, tgt_len=9, shards=[300, 40, len(TOKENS) - 341])


# --------------------------------------------------------------------------- the benchmark's layout


@pytest.fixture
def lm1b(tmp_path):
    return [*write_lm1b(tmp_path / "lm1b"), f"data.cache={tmp_path}/cache"]


def test_the_benchmark_is_encoded_with_s_on_both_sides_and_its_own_vocabulary(lm1b, tmp_path):
    corpus = open_corpus(composed(*lm1b).data)
    vocab = corpus.vocab
    assert vocab.words[:4] == ("the", ",", "<S>", "a") and (vocab.eos_id, vocab.words[vocab.unk_id]) == (2, "<UNK>")
    folder = tmp_path / "lm1b" / LM1B
    paths = sorted((folder / "training-monolingual.tokenized.shuffled").iterdir())
    train = [path.read_text().splitlines() for path in paths]
    assert corpus.shards == [sum(len(line.split()) + 1 for line in lines) for lines in train]
    text = " <S> ".join(line for lines in train for line in lines).replace(" 4 ", " <UNK> ")
    words = [vocab.words[i] for i in corpus.tokens("train")]
    assert words[:-2] == f"<S> {text}".split()[:-1] and words[-2:] == ["<UNK>", "<S>"]
    for split, number in (("test", 0), ("valid", 1)):
        path = folder / f"heldout-monolingual.tokenized.shuffled/news.en.heldout-{number:05d}-of-00050"
        expected = ["<S>", *path.read_text().replace("\n", " <S> ").split()]
        assert [vocab.words[i] for i in corpus.tokens(split)] == expected


def test_a_vocabulary_is_made_of_the_text_where_its_file_is_missing(lm1b):
    vocab = open_corpus(composed(*lm1b, "data.vocab_file=null", "data.min_freq=81").data).vocab
    assert vocab.words[0] == "<S>" and vocab.words[-1] == "<UNK>" and "4" not in vocab.words and "cat" in vocab.words


def test_a_run_trains_on_the_files_of_the_benchmark(lm1b):
    config = composed(*lm1b, "model=small", "train.batch_size=4", "train.tgt_len=6")
    corpus = open_corpus(config.data)
    assert isinstance(training_stream(corpus, config.train, config.seed), SentenceStream) and len(corpus.shards) == 4


def remove_shard(folder):
    (folder / LM1B / "training-monolingual.tokenized.shuffled" / "news.en-00002-of-00100").unlink()


def remove_heldout(folder):
    (folder / LM1B / "heldout-monolingual.tokenized.shuffled" / "news.en.heldout-00001-of-00050").unlink()


def edit_words(change):
    def edit(folder):
        path = folder / "1b_word_vocab.txt"
        path.write_text(change(path.read_text()))

    return edit


BAD = {
    "missing_shard": (remove_shard, "has 3 files in .*, data.shards=4 are expected .not there: 00002, .* txl.download"),
    "missing_held_out_file": (remove_heldout, "data.valid=.*heldout-00001-of-00050: No such file.* txl.download lm1b"),
    "missing_vocabulary": (lambda f: (f / "1b_word_vocab.txt").unlink(), "data.vocab_file=.*_vocab.txt: No such file"),
    "duplicate": (edit_words(lambda s: s + "cat 3\n"), "line 21: 'cat' is in line 5 already"),
    "blank_line": (edit_words(lambda s: s.replace("a 997\n", "\n")), "1b_word_vocab.txt: line 4 is blank"),
    "no_count": (edit_words(lambda s: s.replace("cat 996", "cat and dog")), "line 5: 'cat and dog' is not a word"),
    "no_s": (edit_words(lambda s: s.replace("<S>", "<s>")), "has no <S>, which ends a line; .*data.eos"),
    "no_unk": (edit_words(lambda s: s.replace("<UNK>", "UNK")), "has no <UNK>, which stands for .*data.unk"),
    "not_utf8": (lambda f: (f / "1b_word_vocab.txt").write_bytes(b"a 1\n\xff 2\n"), "line 2 is not UTF-8"),
    "empty": (edit_words(lambda s: ""), "data.vocab_file=.*1b_word_vocab.txt is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_the_files_is_said_before_anything_is_encoded(case, lm1b, tmp_path):
    spoil, message = BAD[case]
    spoil(tmp_path / "lm1b")
    with pytest.raises(ConfigError, match=message) as error:
        open_corpus(composed(*lm1b).data)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("lm1b*")) and not list((tmp_path / "cache").glob(".*.draft"))


def test_a_part_of_the_files_can_be_asked_for(lm1b, tmp_path):
    remove_shard(tmp_path / "lm1b")
    assert len(open_corpus(composed(*lm1b, "data.shards=3").data).shards) == 3
