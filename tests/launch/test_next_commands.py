"""What a training and a sweep end with: the table, and commands that can be copied."""

import shlex

import pytest

from tests.support.entry_points import run
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.config.data import TypedText
from txl.data.char_vocabulary import CharVocabulary
from txl.data.ids_vocabulary import IdsVocabulary
from txl.data.word_vocabulary import WordVocabulary
from txl.launch.next_commands import known_prompt


def lines_after_next(output):
    lines = output.splitlines()
    return [shlex.split(line) for line in lines[lines.index("Next:") + 1 :]]


def test_a_training_ends_with_three_commands_and_relative_paths(tmp_path):
    done = run("train.py", *write_corpus(tmp_path / "text"), *TINY_RUN, "train.max_step=6", cwd=tmp_path)
    (folder,) = [path.parent for path in tmp_path.glob("runs/*/*/summary.json")]
    relative = str(folder.relative_to(tmp_path))
    commands = lines_after_next(done.stdout)
    assert [command[-2 if "generate" in command else -1].rpartition("=")[2] for command in commands] == [relative] * 3
    assert f"Run folder: {relative}\n" in done.stdout
    assert f"Loss curve: {relative}/report/loss.png\n" in done.stdout
    assert str(tmp_path) not in done.stdout.replace(str(tmp_path / "text"), "")
    training = done.stdout[done.stdout.index("epoch") : done.stdout.index("Next:")]
    assert max(map(len, training.splitlines())) <= 80


@pytest.mark.parametrize(
    "vocab, prompt",
    [
        (WordVocabulary(["<eos>", "the", "The", "cat"]), "The "),
        (WordVocabulary(["<eos>", "<unk>", "cat", "the"]), "the "),
        (WordVocabulary(["<eos>", "Bar", "Position_0/32"]), "Bar"),
        (IdsVocabulary(4), "0"),
        (CharVocabulary("\n abc"), "a"),
    ],
)
def test_the_prompt_that_is_proposed_is_of_tokens_that_the_model_knows(vocab, prompt):
    vocab.typed_text = TypedText.whitespace
    assert known_prompt(vocab, "The ") == prompt


def test_a_sweep_ends_with_its_table_and_the_best_run(tmp_path):
    short = ["train.max_step=6", "valid.interval=2", "optimizer.lr=0.01,0.0001"]
    done = run("train.py", "-m", *write_corpus(tmp_path / "text"), *TINY_RUN, *short, cwd=tmp_path)
    report, evaluate = lines_after_next(done.stdout)
    assert done.stdout.count("Next:") == 1
    assert report[-2:] == ["report", "runs/text-small"]
    losses = {path.parent: path.read_text() for path in tmp_path.glob("runs/*/*/summary.json")}
    assert len(losses) == 2 and (tmp_path / evaluate[-1].removeprefix("checkpoint=")) in losses
    table = done.stdout[: done.stdout.index("Next:")]
    assert all(folder.name[:8] in table or "lr" in table for folder in losses)
