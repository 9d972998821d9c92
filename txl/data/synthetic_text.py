"""Random tokens and text for benchmarks. Word frequencies follow Zipf's law: they are proportional to 1 / rank."""

from pathlib import Path

import numpy as np

from txl.data.vocabulary import UNK

WORDS = 267_733  # with <unk>, `=` and <eos> about as many as WikiText-103 has
LETTERS = "etaoinsrhldcumfpgwybvkETAOINSRHLDCUMFPGWYBVKxzqj0123456789.,-'éüā–東"  # the most frequent first

# The number of words of each line of an article: 0 is an empty line, HEADING a title, PARAGRAPH a random number.
HEADING, PARAGRAPH = 5, 190
ARTICLE = np.array(3 * [0, HEADING, 0, *6 * [PARAGRAPH]])
ARTICLES = 100  # articles that are drawn together


def zipf_tokens(rng: np.random.Generator, count: int, vocab_size: int) -> np.ndarray:
    """[count] int32 ids; 0 is the most frequent one."""
    edges = np.cumsum(1 / np.arange(1, vocab_size + 1))
    drawn = rng.random(count) * edges[-1]
    return np.asarray(np.searchsorted(edges, drawn).clip(max=vocab_size - 1), np.int32)


def write_zipf_text(path: Path, size: int, seed: int) -> None:
    """Write articles laid out as in WikiText: at least `size` bytes, and less than ARTICLES articles more than that.

    The words are the same for every seed, so several texts can form one data set. `<unk>` is the fourth most frequent
    word.
    """
    words = [word.encode() for word in make_words(WORDS)]
    words = [*words[:3], UNK.encode(), *words[3:], b"\n", b"="]
    rng = np.random.default_rng(seed)
    with open(path, "wb") as file:
        while file.tell() < size:
            ids = draw_articles(rng, len(words) - 2)
            file.write(b" " + b" ".join(map(words.__getitem__, ids.tolist())))


def draw_articles(rng: np.random.Generator, vocab_size: int) -> np.ndarray:
    """Ids of words. The id vocab_size stands for the end of a line, vocab_size + 1 for the mark around a title."""
    lengths = np.tile(ARTICLE, ARTICLES)
    paragraphs = lengths == PARAGRAPH
    lengths[paragraphs] = rng.integers(20, PARAGRAPH, paragraphs.sum())
    ends = np.cumsum(lengths + 1) - 1
    ids = zipf_tokens(rng, ends[-1] + 1, vocab_size)
    ids[ends] = vocab_size
    titles = ends[lengths == HEADING]
    ids[titles - 1] = ids[titles - HEADING] = vocab_size + 1
    return ids


def make_words(count: int) -> list[str]:
    """Distinct random words; frequent ones are shorter. With the space after it, a word of a text has 5 bytes on
    average."""
    rng, words = np.random.default_rng(0), dict[str, None]()
    frequency = np.cumsum(1 / np.arange(3, len(LETTERS) + 3) ** 1.3)
    letters = np.array(list(LETTERS))
    while len(words) < count:
        lengths = 1 + rng.poisson(0.45 * np.log(np.arange(1, count + 1)))
        drawn = np.searchsorted(frequency, rng.random(lengths.sum()) * frequency[-1])
        text, ends = "".join(letters[drawn]), np.cumsum(lengths)
        words |= dict.fromkeys(text[i:j] for i, j in zip((ends - lengths).tolist(), ends.tolist(), strict=True))
    return list(words)[:count]
