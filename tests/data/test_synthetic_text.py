"""Text that benchmarks make up is laid out as WikiText and has the frequencies of a language."""

from collections import Counter

import numpy as np

from txl.data.synthetic_text import WORDS, draw_articles, make_words, write_zipf_text, zipf_tokens


def test_a_token_is_as_frequent_as_one_over_its_rank():
    counts = np.bincount(zipf_tokens(np.random.default_rng(0), 400_000, 1000), minlength=1000)
    expected = 400_000 / np.arange(1, 1001) / (1 / np.arange(1, 1001)).sum()
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_words_are_distinct_and_the_frequent_ones_are_short():
    words = make_words(WORDS)
    assert len(set(words)) == WORDS and not any(word.split() != [word] for word in words)
    assert len("".join(words[:100])) / 100 < len("".join(words[-100:])) / 100 - 2
    assert not "".join(words).isascii()


def test_an_article_has_titles_between_empty_lines_and_paragraphs():
    ids = draw_articles(np.random.default_rng(0), 50)
    lines = np.split(ids, np.flatnonzero(ids == 50) + 1)[:-1]
    titles = [line for line in lines if 51 in line]
    assert all(line.tolist()[0] == line.tolist()[-2] == 51 and len(line) == 6 for line in titles)
    lengths = Counter(len(line) for line in lines)
    assert lengths[1] == 2 * len(titles) and len(lines) == 9 * len(titles)


def test_the_text_has_its_size_and_is_the_same_for_a_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_zipf_text(tmp_path / name, 1_500_000, seed)
    texts = {name: (tmp_path / name).read_text(encoding="utf-8") for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]
    assert 1_500_000 <= (tmp_path / "a").stat().st_size < 3_000_000
    assert texts["a"].startswith(" \n = ") and texts["a"].endswith(" \n") and " <unk> " in texts["a"]
