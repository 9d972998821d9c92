"""txl score: many texts, one per line, with the scores that each has alone."""

import itertools
import json
import random

import numpy as np
import pytest

import txl
from tests.support.in_process import evaluate_here, train_here
from tests.support.made_data import sentences, write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.errors import ConfigError
from txl.evaluate import score as scoring
from txl.evaluate.score_file import LineReader, score_lines

TEXTS = [*sentences(60, random.Random(3)), "the", "", "a dog", "on " * 40 + "tree"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over words, with a memory that is shorter than the longest text."""
    folder = tmp_path_factory.mktemp("score")
    text = [*write_corpus(folder / "text"), "data.vocab=word", "data.metric=ppl", "data.min_freq=1"]
    lengths = ["evaluation.tgt_len=6", "evaluation.mem_len=20"]
    train_here(*TINY_RUN, *text, *lengths, "train.max_step=6", f"run_dir={folder}/run")
    return folder / "run"


@pytest.fixture(scope="module")
def model(run):
    return txl.load(run, device="cpu", precision="fp64")


@pytest.fixture
def score_texts(run, tmp_path, monkeypatch):
    """Rows of `txl score` over lines, as objects; run in this process."""
    monkeypatch.setattr(scoring, "CHUNK_TOKENS", 100)  # several chunks

    def score_texts(lines, *overrides, expect=0):
        (tmp_path / "hyps.txt").write_bytes(
            b"".join(line if isinstance(line, bytes) else line.encode() for line in lines)
        )
        files = [f"file={tmp_path}/hyps.txt", f"scores={tmp_path}/out.jsonl", f"json={tmp_path}/total.json"]
        evaluate_here(
            f"checkpoint={run}", "task=score", "hardware=cpu", "precision=fp64", *files, *overrides, expect=expect
        )
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    return score_texts


def with_breaks(texts):
    return [f"{text}\n" for text in texts]


def test_every_line_has_the_score_that_it_has_alone(score_texts, model, tmp_path):
    rows = score_texts(with_breaks(TEXTS), "token_losses=true")
    assert [row["id"] for row in rows] == [str(number) for number in range(1, len(TEXTS) + 1)]
    for row, text in zip(rows, TEXTS, strict=True):
        alone = model.score(text, token_losses=True)
        assert row["nats"] == pytest.approx(alone.nats, rel=1e-10, abs=1e-10) and row["tokens"] == alone.tokens
        assert [tuple(pair) for pair in row["token_losses"]] == [
            (token, pytest.approx(nats, rel=1e-10)) for token, nats in alone.token_losses
        ]
    total = json.loads((tmp_path / "total.json").read_text())
    assert total["nats"] == pytest.approx(sum(row["nats"] for row in rows)) and total["geometry"]["mem_len"] == 20
    assert total["texts"] == len(TEXTS) and total["context"] == "none" and total["bad_lines"] == 0


def test_in_float32_the_difference_is_rounding(run):
    model = txl.load(run, device="cpu")
    for one, text in zip(model.score(TEXTS), TEXTS, strict=True):
        assert one.nats == pytest.approx(model.score(text).nats, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("context", ["\n", "the cat sat on ", "a dog ran\n" * 9], ids=["line", "short", "long"])
@pytest.mark.parametrize("runtime", ["cached", "eager"])
def test_a_context_is_read_once_and_forked_for_every_line(score_texts, model, tmp_path, runtime, context):
    (tmp_path / "context.txt").write_text(context)
    rows = score_texts(with_breaks(TEXTS), f"context={tmp_path}/context.txt", f"runtime={runtime}")
    for row, text in zip(rows, TEXTS, strict=True):
        alone = model.score(text, context=context)
        assert row["nats"] == pytest.approx(alone.nats, rel=1e-10) and row["tokens"] == alone.tokens


def test_with_context_previous_all_lines_are_one_text(score_texts, model):
    rows = score_texts(with_breaks(TEXTS), "context=previous")
    parts = list(model.score_in_sequence([model.encode(text) for text in TEXTS]))
    assert [row["nats"] for row in rows] == pytest.approx([part.nats for part in parts], rel=1e-10)
    assert rows[1]["tokens"] == len(model.encode(TEXTS[1]))


def test_ids_before_a_tab_name_the_rows_and_the_rows_may_be_tsv(run, capsys, tmp_path, model):
    (tmp_path / "hyps.txt").write_text("utt1-a\tthe cat sat\r\nutt1-b\tthe cat ran\n")
    evaluate_here(f"checkpoint={run}", "task=score", "hardware=cpu", f"file={tmp_path}/hyps.txt", "token_losses=true")
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["utt1-a", "utt1-b"]
    for row, text in zip(rows, ("the cat sat", "the cat ran"), strict=True):
        losses = [float(nats) for nats in row[3].split()]
        assert float(row[1]) == pytest.approx(model.score(text).nats, rel=1e-5) == pytest.approx(sum(losses), rel=1e-4)
        assert int(row[2]) == model.score(text).tokens == len(losses)


def test_bad_lines_are_named_with_their_numbers_and_the_others_are_scored(score_texts, capsys):
    lines = ["a\tthe cat\n", "no tab\n", b"c\t\xff\xfe\n", "d\ta dog\n"]
    with pytest.raises(
        ConfigError, match=r"hyps.txt: 2 of 4 lines were not scored: line 2: differs .*; line 3: is not"
    ):
        score_texts(lines)
    said = capsys.readouterr().err
    assert "warning: line 2: differs from line 1, which has an id, a tab and a text" in said
    rows = score_texts([lines[0], lines[3]])
    assert [row["id"] for row in rows] == ["a", "d"]


def test_rows_of_bad_lines_keep_their_place():
    def encode(text):
        if not text.isdigit():
            raise ConfigError("no number")
        return np.array([int(text)])

    reader = LineReader([b"1\n", b"x\n", b"3\n", b"y\n"], "f", encode)
    found = list(score_lines(reader, lambda texts: iter([int(text[0]) for text in list(texts)])))
    assert [(line.number, score) for line, score in found] == [(1, 1), (2, None), (3, 3), (4, None)]
    assert found[1][0].problem == "no number"


def test_a_file_of_token_ids_is_scored_where_the_data_are_ids(tmp_path):
    ids = np.random.default_rng(0).integers(0, 30, 3000)
    np.save(tmp_path / "train.npy", ids)
    np.save(tmp_path / "valid.npy", ids[:800])
    data = ["data=ids", f"data.train={tmp_path}/train.npy", f"data.valid={tmp_path}/valid.npy", "data.vocab_size=30"]
    train_here(*TINY_RUN, *data, f"data.cache={tmp_path}/cache", "train.max_step=6", f"run_dir={tmp_path}/run")
    (tmp_path / "hyps.txt").write_text("first\t1 2 3 29\nsecond\t5 5\n")
    files = [f"file={tmp_path}/hyps.txt", f"scores={tmp_path}/out.tsv"]
    evaluate_here(f"checkpoint={tmp_path}/run", "task=score", "hardware=cpu", *files)
    assert [line.split("\t")[::2] for line in (tmp_path / "out.tsv").read_text().splitlines()] == [
        ["first", "3"],
        ["second", "1"],
    ]


def test_memory_and_reading_ahead_are_bounded(model, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_TOKENS", 300)
    read = itertools.count()
    texts = (model.encode("the cat sat on the mat") for _ in iter(lambda: next(read), 100_000))
    scores = model.score_stream(texts)
    first = next(scores)
    assert next(read) < 100 and first.tokens == 6
    assert sum(1 for _ in itertools.islice(scores, 200)) == 200 and next(read) < 400


def test_ctrl_c_keeps_the_rows_so_far_and_says_how_many(score_texts, tmp_path, monkeypatch, capsys):
    def interrupted(reader):
        yield from itertools.islice(read(reader), 150)
        raise KeyboardInterrupt

    read = LineReader.__iter__
    monkeypatch.setattr(LineReader, "__iter__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_texts(with_breaks(TEXTS[:1] * 200))
    rows = (tmp_path / "out.jsonl.partial").read_text().splitlines()
    assert rows and f"out.jsonl.partial has the rows of the first {len(rows)} lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=score"], "task=score needs file=FILE"),
        (["task=score", "file=no-such"], "file=no-such cannot be read .*No such file"),
        (["task=score", "file=.", "scores=out.tsv"], "file=. cannot be read .*Is a directory"),
        (["task=score", "file={}", "context=no-such"], "context=no-such cannot be read .*use none, previous"),
        (["task=score", "file={}", "scores=no/out.tsv"], "scores=no/out.tsv: there is no folder no"),
        (["task=score", "file={}", "scores={}"], "scores=.* is the file that file= reads"),
        (["task=score", "file={}", "runtime=export"], "runtime=export reads whole segments"),
        (["task=score", "file={}", "gpus=2"], "gpus=2 is more than task=score uses"),
        (["file={}"], "file=.* has no meaning for task=evaluate; use task=score"),
        (["task=score", "file={}", "text=a"], "text=a has no meaning for task=score"),
    ],
)
def test_a_mistake_is_one_line_before_the_model_is_read(run, tmp_path, overrides, message):
    (tmp_path / "texts.txt").write_text("a\n")
    with pytest.raises(ConfigError, match=message) as error:
        given = [override.format(tmp_path / "texts.txt") for override in overrides]
        evaluate_here(f"checkpoint={run}", "hardware=cpu", *given)
    assert "\n" not in str(error.value)
