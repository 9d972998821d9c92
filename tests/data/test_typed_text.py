"""Typed text becomes words as the data set's words were made: by Moses' rules, or by white space alone."""

import json
import random

import pytest

from tests.support.configurations import composed
from tests.support.in_process import evaluate_here, train_here
from tests.support.tiny_runs import TINY_RUN
from txl.config.compose import from_dict, to_dict
from txl.config.data import DataConfig, TypedText
from txl.data.moses import moses_tokenize
from txl.data.word_vocabulary import WordVocabulary
from txl.errors import ConfigError

PROMPT = "Bar_None Position_0/32 Note-On_60 Note-Duration_3"


def write_events(folder):
    """Bars of notes, as the tokenization REMI writes them for MIDI files."""
    rng = random.Random(0)
    folder.mkdir()
    for split, bars in (("train", 200), ("valid", 40), ("test", 40)):
        lines = []
        for _ in range(bars):
            notes = sorted(rng.randint(0, 31) for _ in range(4))
            events = (f"Position_{n}/32 Note-On_{rng.randint(50, 70)} Note-Duration_{rng.randint(1, 8)}" for n in notes)
            lines.append(" ".join(["Bar_None", *events]) + "\n")
        (folder / f"{split}.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def events_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    write_events(folder / "data")
    data = ["data=text", f"data.path={folder}/data", f"data.cache={folder}/cache"]
    train_here(*data, *TINY_RUN, f"run_dir={folder}/run", "train.max_step=30", "optimizer.lr=0.02")
    return folder / "run"


def written(tmp_path, *overrides):
    evaluate_here("hardware=cpu", f"json={tmp_path}/s.json", *overrides)
    return json.loads((tmp_path / "s.json").read_text())


def test_a_model_of_events_is_prompted_with_events_and_writes_events(events_run, tmp_path, capsys):
    [text] = written(tmp_path, f"checkpoint={events_run}", "task=generate", f"prompt='{PROMPT}'", "max_tokens=80")
    assert text["text"].startswith(PROMPT) and text["text"] in capsys.readouterr().out
    kinds = ("Bar_None", "Position_", "Note-On_", "Note-Duration_")
    assert len(text["tokens"]) == 80 and all(word.startswith(kinds) for word in text["text"].split())


def test_events_are_scored_event_by_event(events_run, tmp_path):
    scored = written(tmp_path, f"checkpoint={events_run}", f"text='{PROMPT}'", "token_losses=true")["text"]
    assert [token for token, _ in scored["token_losses"]] == [*PROMPT.split()[1:], "\n"] and scored["unknown"] == 0


def test_an_event_that_the_model_does_not_know_is_named(events_run, tmp_path):
    with pytest.raises(ConfigError, match="the word 'Note-On_99' is not in the vocabulary"):
        written(tmp_path, f"checkpoint={events_run}", "text='Bar_None Note-On_99'")


def test_white_space_alone_separates_words_that_moses_would_split():
    vocab = WordVocabulary(["<eos>", "Position_0/32", "Note-On_60", '"a', "b,"])
    vocab.typed_text = TypedText.whitespace
    for text in ("Position_0/32  Note-On_60", '"a\nb,'):
        ids = vocab.encode_typed(text, end_line=False).tolist()
        assert vocab.to_typed_text(ids) == text.replace("  ", " ")
    assert vocab.encode_typed('"a\n\nb,', end_line=True).tolist() == [3, 0, 0, 4, 0]
    assert vocab.can_forget([3]) and not vocab.joins_words


WIKITEXT_WORDS = """
    <eos> <unk> <formula> @-@ @,@ @.@ 's 't & < > [ ] ( ) , . " the film director don cost 3 5 million R B AT T
""".split()


@pytest.mark.parametrize(
    "typed, words",
    [
        ("the film's director", "the film 's director"),
        ("the film 's director", "the film 's director"),
        ("the sequel 's director don 't", "the sequel 's director don 't"),  # sequel: a word that is not known
        ("cost 3.5 million", "cost 3 @.@ 5 million"),
        (
            "<unk> cost 3 @.@ 5 million , ( the <unk> @-@ film ) .",
            "<unk> cost 3 @.@ 5 million , ( the <unk> @-@ film ) .",
        ),
        ("the sequel cost 3 @.@ 5 <unk>.", "the sequel cost 3 @.@ 5 <unk> ."),
        ("a sequel of <formula>", "a sequel of <formula>"),
        ("a sequel of <b>", "a sequel of < b >"),  # not a word of the data set
        ("R&B, AT&T [the film] <", "R & B , AT & T [ the film ] <"),
    ],
)
def test_moses_rules_keep_what_is_separated_already_and_escape_nothing(typed, words):
    assert moses_tokenize(typed, set(WIKITEXT_WORDS)) == words


def test_a_line_of_the_data_set_is_read_as_the_data_set_is_whatever_its_words():
    vocab = WordVocabulary(["<eos>", "'an", "U.S.A", "Chang", "it."])
    vocab.typed_text = TypedText.moses
    assert vocab.encode_typed("Chang 'an U.S.A it.", end_line=False).tolist() == [3, 1, 2, 4]


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["data=wt103"], TypedText.moses),
        (["data=wt2"], TypedText.moses),
        (["data=ptb"], TypedText.moses),
        (["data=lm1b"], TypedText.moses),
        (["experiment=wikitext-mini"], TypedText.moses),
        (["data=wt103", "data.vocab=char"], TypedText.whitespace),
        (["data=enwik8"], TypedText.whitespace),
        (["data=text", "data.file=a.txt"], TypedText.whitespace),
        (["data=text", "data.file=a.txt", "data.typed_text=moses"], TypedText.moses),
    ],
)
def test_moses_rules_are_used_where_the_data_set_was_made_with_them(overrides, expected):
    assert composed(*overrides).data.typed_text is expected


def test_a_checkpoint_of_an_earlier_version_reads_typed_text_by_moses_rules():
    values = to_dict(composed("data=text", "data.file=a.txt").data)
    del values["typed_text"]
    assert from_dict(values, DataConfig).typed_text is TypedText.moses


def test_moses_rules_are_for_words():
    with pytest.raises(ConfigError, match="data.typed_text=moses has no meaning for data.vocab=char; leave it out"):
        composed("data=text", "data.file=a.txt", "data.vocab=char", "data.typed_text=moses")


def test_a_vocabulary_without_an_end_of_line_takes_typed_text_too():
    """Imported models whose vocabulary file is missing have the words token0, token1, ..."""
    vocab = WordVocabulary(["token0", "token1"])
    assert vocab.encode_typed("token1\ntoken0", end_line=True).tolist() == [1, 0]
