"""Made-up tokens and text whose words are as frequent as a language's: one over their rank (Zipf). For benchmarks."""

from pathlib import Path

import numpy as np

from txl.data.vocabulary import UNK

WORDS = 267_733  # with <unk>, `=` and <eos> about as many as WikiText-103 has


LETTERS = "etaoinsrhldcumfpgwybvkETAOINSRHLDCUMFPGWYBVKxzqj0123456789.,-'éüā–東"  # by falling frequency


# Words of each line of an article; 0: an empty line, HEADING: a title, PARAGRAPH: any number.
HEADING, PARAGRAPH = 5, 190


ARTICLE = np.array(3 * [0, HEADING, 0, *6 * [PARAGRAPH]])


ARTICLES = 100  # made at a time


def zipf_tokens(rng: np.random.Generator, count: int, vocab_size: int) -> np.ndarray:
    """[count] int32 ids, the most frequent one 0."""
    edges = np.cumsum(1 / np.arange(1, vocab_size + 1))
    drawn = rng.random(count) * edges[-1]
    return np.searchsorted(edges, drawn).clip(max=vocab_size - 1).astype(np.int32)


def write_text(path: Path, size: int, seed: int) -> None:
    """Articles laid out as WikiText's, at least `size` bytes of them and less than ARTICLES more.

    The words are the same for every seed, so that texts can belong together; `<unk>` is the fourth most frequent.
    """
    words = [word.encode() for word in spellings(WORDS)]
    words = [*words[:3], UNK.encode(), *words[3:], b"\n", b"="]
    rng = np.random.default_rng(seed)
    with open(path, "wb") as file:
        while file.tell() < size:
            ids = articles(rng, len(words) - 2)
            file.write(b" " + b" ".join(map(words.__getitem__, ids.tolist())))


def articles(rng: np.random.Generator, vocab_size: int) -> np.ndarray:
    """Ids of words; vocab_size stands for a line's end, vocab_size + 1 for the mark around a title."""
    lengths = np.tile(ARTICLE, ARTICLES)
    paragraphs = lengths == PARAGRAPH
    lengths[paragraphs] = rng.integers(20, PARAGRAPH, paragraphs.sum())
    ends = np.cumsum(lengths + 1) - 1
    ids = zipf_tokens(rng, ends[-1] + 1, vocab_size)
    ids[ends] = vocab_size
    titles = ends[lengths == HEADING]
    ids[titles - 1] = ids[titles - HEADING] = vocab_size + 1
    return ids


def spellings(vocab_size: int) -> list[str]:
    """Distinct words, the frequent ones shorter: five bytes with the space after it in the mean of a text."""
    rng, words = np.random.default_rng(0), dict[str, None]()
    frequency = np.cumsum(1 / np.arange(3, len(LETTERS) + 3) ** 1.3)
    letters = np.array(list(LETTERS))
    while len(words) < vocab_size:
        lengths = 1 + rng.poisson(0.45 * np.log(np.arange(1, vocab_size + 1)))
        drawn = np.searchsorted(frequency, rng.random(lengths.sum()) * frequency[-1])
        text, ends = "".join(letters[drawn]), np.cumsum(lengths)
        words |= dict.fromkeys(text[i:j] for i, j in zip((ends - lengths).tolist(), ends.tolist(), strict=True))
    return list(words)[:vocab_size]
