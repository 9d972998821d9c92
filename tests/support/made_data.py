"""Small made-up data sets, each in the layout that its real one has; they return what `train.py` needs to find them."""

import json
import random
from pathlib import Path

WORDS = "the a cat dog sat ran on under mat tree and or quickly never".split()
LM1B = "1-billion-word-language-modeling-benchmark-r13output"
SPLITS = {"train": 300, "valid": 60, "test": 60}  # lines


def sentences(count: int, rng: random.Random) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(count)]


def write_corpus(folder: Path, train_lines: int = 200, seed: int = 0) -> list[str]:
    """train/valid/test.txt of made-up sentences; returns the overrides that name them."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    overrides = ["data=text", "data.vocab=char", f"data.cache={folder}/cache"]
    for split, lines in (("train", train_lines), ("valid", 40), ("test", 40)):
        text = "".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) + "\n" for _ in range(lines))
        (folder / f"{split}.txt").write_text(text)
        overrides.append(f"data.{split}={folder}/{split}.txt")
    return overrides


def write_splits(folder: Path, name: str) -> None:
    """train, valid and test files called `name` with {} for the split."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for split, lines in SPLITS.items():
        (folder / name.format(split)).write_text("".join(f" {line} . \n" for line in sentences(lines, rng)))


def write_one_file(folder: Path, name: str) -> str:
    """A file of at least 10,000 bytes of a-z and spaces; the override that cuts it."""
    folder.mkdir(parents=True)
    (folder / name).write_text(" ".join(sentences(400, random.Random(0))))
    return "data.split_bytes=[8000,1000,1000]"


def write_lm1b(folder: Path, shards: int = 4, lines: int = 80) -> list[str]:
    """The benchmark's unpacked tarball and its vocabulary file beside it."""
    rng = random.Random(0)
    train = folder / LM1B / "training-monolingual.tokenized.shuffled"
    heldout = folder / LM1B / "heldout-monolingual.tokenized.shuffled"
    train.mkdir(parents=True)
    heldout.mkdir(parents=True)
    for i in range(1, shards + 1):
        text = [f"{sentence} {i}" for sentence in sentences(lines, rng)]
        (train / f"news.en-{i:05d}-of-00100").write_text("\n".join(text) + "\n")
    for i in range(3):
        (heldout / f"news.en.heldout-{i:05d}-of-00050").write_text("\n".join(sentences(60, rng)) + "\n")
    words = ["the", ",", "<S>", *WORDS[1:], "<UNK>", *map(str, range(1, shards))]  # the last file's number is unknown
    (folder / "1b_word_vocab.txt").write_text("".join(f"{word} {1000 - i}\n" for i, word in enumerate(words)))
    return ["data=lm1b", f"data.path={folder}", f"data.shards={shards}", "data.cutoffs=[6,10]", "data.vocab_size=null"]


def write_bpe(folder: Path, text: list[str], size: int = 300) -> tuple[Path, Path]:
    """Byte pairs trained on a text: the files vocab.json and merges.txt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.model.save(str(folder))
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    table = json.loads(vocab_file.read_text())
    vocab_file.write_text(json.dumps(table | {"<|endoftext|>": len(table)}))  # the last one, as GPT-2 has it
    return vocab_file, merges_file
