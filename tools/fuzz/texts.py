"""Texts in every language and encoding, and none: encoded, decoded, typed as prompts, scored and continued."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tests.support.configurations import composed
from tests.support.made_data import write_bpe
from tools.fuzz.answers import problem_of
from txl.config.data import DataConfig
from txl.config.geometry import Geometry
from txl.config.model import AttentionBackend
from txl.config.precision import Arithmetic
from txl.config.sampling import Sampling
from txl.config.schema import Runtime
from txl.data.corpus import Corpus, open_corpus
from txl.data.vocabulary import Vocabulary, vocabulary_from_dict
from txl.errors import ConfigError
from txl.evaluate.load_model import LoadedModel
from txl.evaluate.trained_model import Model
from txl.model.transformer import TransformerXL
from txl.system.console import printable

# Where an alphabet begins and ends: ASCII, control characters, Latin, Cyrillic, Arabic, Devanagari, Thai, spaces and
# marks, Chinese, private characters, specials, emoji, the end of the last plane.
LETTERS = "20-7F 0-20 A0-250 400-500 600-700 900-980 E00-E80 2000-2070 3000-9FFF E000-E100 FFF0-10000 1F300-1F700"
LETTERS += " 10FFF0-110000"
WORDS = "the a cat <unk> <eos> <|endoftext|> 3.5 don't x-y @-@ &quot; \ufeff [CLS] \\n Note_60 U.S. ' \" ( ) , . ! "
WORDS += "\u3000 \u200d \u0301"
ENDS = ["\n", "\n", "\n", "\r\n", "\r", "\n\n", " ", "\t", "\u3000", "\u2028", "\x0b", "\x0c", "\x85", "\u00a0\n", ""]
ENCODINGS = ["utf-8"] * 12 + ["latin-1", "utf-16", "utf-32", "cp1252", "shift_jis", "gb18030", "utf-8-sig", "utf-7"]
KINDS = ["", "", "word", "word", "char", "byte", "bpe"]
GEOMETRY = Geometry(tgt_len=8, mem_len=8)


def random_text(rng: random.Random, most: int) -> str:
    """A text of up to about `most` characters, of one or two alphabets, words, or one repeated character."""
    low, high = (int(end, 16) for end in rng.choice(LETTERS.split()).split("-"))
    alphabet = [chr(rng.randrange(low, high)) for _ in range(rng.choice([1, 2, 30, 300]))]
    alphabet += rng.choice([[], [], [" "], [" "] * 8, WORDS.split(" "), WORDS.split(" ") * 9])
    end, length, parts = rng.choice(ENDS), rng.choice([1, 5, 30, 3000]), list[str]()
    size = rng.choice([0, 1, 2, 10, 100, most])
    while sum(map(len, parts)) < size:
        parts.append("".join(rng.choices(alphabet, k=rng.randint(0, min(length, size)))) + end)
    return "".join(character for character in "".join(parts)[:size] if not 0xD800 <= ord(character) < 0xE000)


def random_bytes(rng: random.Random, most: int) -> bytes:
    """A text in some encoding, perhaps damaged."""
    content = random_text(rng, most).encode(rng.choice(ENCODINGS), "replace")
    if rng.random() < 0.05:
        content = rng.randbytes(rng.choice([1, 50, most]))
    if rng.random() < 0.1 and content:
        place = rng.randrange(len(content))
        content = content[:place] + rng.choice([b"", b"\xff", b"\x00" * 40, b"\xf0\x9f"]) + content[place + 1 :]
    return content


class TextFuzz:
    """Makes a data set of every seed in a folder, and uses it in every way."""

    def __init__(self, folder: Path):
        self.folder = folder / "texts"
        words = ["the cat sat on the mat and ran", "die Katze ß ü", "東京 都"] * 40
        self.bpe = write_bpe(folder / "bpe", words)
        sizes = "n_layer=1 n_head=2 d_model=16 d_head=8 d_inner=32 dropout=0".split()
        self.config = composed(*(f"model.{size}" for size in sizes))

    def problem(self, seed: int) -> tuple[str, str | None]:
        """What was made of a seed, and what is wrong with the answer."""
        rng = random.Random(seed)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        options = self._data_set(rng)
        wrong = problem_of(lambda: self._use(rng, options))
        return " ".join(option.replace(str(self.folder), ".") for option in options), wrong

    def _data_set(self, rng: random.Random) -> list[str]:
        """Writes the files; returns the options that name them."""
        options = ["data=text", f"data.cache={self.folder}/cache"]
        if rng.random() < 0.6:
            (self.folder / "a").write_bytes(random_bytes(rng, 5000))
            options.append(f"data.file={self.folder}/a")
            options += rng.choice([[], [], ["data.split=[.5,.5]"], ["data.split_bytes=[20,5,5]"]])
        else:
            text = random_bytes(rng, 5000)
            for split in ("train", "valid", "test"):
                (self.folder / split).write_bytes(random_bytes(rng, 500) if rng.random() < 0.3 else text)
                options.append(f"data.{split}={self.folder}/{split}")
        kind = rng.choice(KINDS)
        if kind:
            options.append(f"data.vocab={kind}")
        if kind == "bpe":
            options += [f"data.vocab_file={self.bpe[0]}", f"data.merges_file={self.bpe[1]}"]
        elif kind == "word":
            options += rng.choice([[], ["data.min_freq=2"], ["data.max_size=5"], ["data.lower_case=true"]])
            options += rng.choice([[], ["data.typed_text=moses"], ["data.sentences=true", "data.min_freq=2"]])
        return options

    def _use(self, rng: random.Random, options: list[str]) -> None:
        """Encodes the text, twice, and asks for everything that a model of it can do."""
        data = composed(*options).data
        corpus = open_corpus(data)
        _check_ids(corpus)
        assert open_corpus(data).fingerprint == corpus.fingerprint, "the second time it is another data set"
        vocab = vocabulary_from_dict(corpus.vocab.to_dict())
        assert vocab.fingerprint == corpus.vocab.fingerprint, "the stored vocabulary is another one"
        vocab.typed_text = data.typed_text
        model = self._model(vocab, data)
        sampling = Sampling(max_tokens=5, seed=1)
        uses: list[Callable[[str], object]] = [
            lambda text: vocab.decode(vocab.encode(text)),
            lambda text: vocab.to_typed_text(vocab.encode_typed(text, end_line=True).tolist()),
            lambda text: model.score(text, token_losses=True),
            lambda text: printable(model.continue_texts([text], sampling)[0].text),
        ]
        texts = [random_text(rng, 300), random_text(rng, 20), corpus.vocab.decode(corpus.tokens("train")[:50])]
        for text in texts:
            for use in uses:
                _short_answer(use, text)

    def _model(self, vocab: Vocabulary, data: DataConfig) -> Model:
        torch.manual_seed(0)
        config = self.config.model
        built = TransformerXL(config, len(vocab), [], 64, AttentionBackend.eager).eval()
        loaded = LoadedModel(built, config, vocab, data, self.config.evaluation, self.folder)
        return Model(loaded, GEOMETRY, Runtime.auto, Arithmetic.fp32)


def _check_ids(corpus: Corpus) -> None:
    for split in corpus.splits:
        ids = corpus.tokens(split)
        assert len(ids) and int(ids.max()) < len(corpus.vocab), "an id is beyond the vocabulary"
        again = corpus.vocab.decode(ids[:2000])
        assert isinstance(again, str), "no text"


def _short_answer(use: Callable[[str], object], text: str) -> None:
    """Uses a text; a refusal must be as short as any other."""
    try:
        use(text)
    except ConfigError as error:
        assert len(str(error)) <= 300 and len(str(error).splitlines()) == 1, f"not one short line: {error}"
