"""English text typed by a person -> words as WikiText separates them, and back.

Moses' rules separate words and punctuation. Like WikiText, a mark inside a number or a compound becomes a word of its
own: `3.5` -> `3 @.@ 5`.
"""

import re
from collections.abc import Container
from html import unescape

JOINERS = ((".", r"\d"), (",", r"\d"), ("-", r"\w"))  # (mark, the characters on both of its sides)
JOINER_WORDS = frozenset(f"@{mark}@" for mark, _ in JOINERS)
CUT_AGAIN = re.compile(r"(?<!\S)(?:@ [.,-] @|&lt; \w+ &gt;|' (?:s|t|re|ve|ll|d|m))(?!\S)")  # @-@, <unk> and 's were cut
ESCAPED = re.compile(r"&(?:amp|lt|gt|#124|#91|#93);")  # &, <, >, |, [ and ]


def moses_tokenize(text: str, known_words: Container[str] = JOINER_WORDS) -> str:
    """Separate the words and punctuation marks of one line by spaces.

    A line whose words are all in `known_words` is separated already, as the lines of the data set are, and stays as it
    is. In other lines, a word such as `@-@`, `<unk>` or `'s` that stands alone stays whole if it is known. A joiner
    (`@.@`, `@,@`, `@-@`) is used only if it is known, and Moses' escape of a mark (`&amp;`) only if the mark is not.
    """
    if all(word in known_words for word in text.split()):
        return text
    import sacremoses

    def known_or_as_found(found: re.Match[str]) -> str:
        word = unescape(found[0]).replace(" ", "")
        return word if word in known_words else found[0]

    words: str = sacremoses.MosesTokenizer("en").tokenize(text, return_str=True)
    words = words.replace("&quot;", '"').replace("&apos;", "'")
    words = ESCAPED.sub(known_or_as_found, CUT_AGAIN.sub(known_or_as_found, words))
    for mark, neighbour in JOINERS:
        if f"@{mark}@" in known_words:
            words = re.sub(rf"({neighbour}){re.escape(mark)}({neighbour})", rf"\1 @{mark}@ \2", words)
    return words


def moses_detokenize(words: list[str]) -> str:
    """The words of one line -> the line as a person would type it."""
    import sacremoses

    text = re.sub(r" ?@([.,-])@ ?", r"\1", " ".join(words))
    typed: str = sacremoses.MosesDetokenizer("en").detokenize(text.split())
    return typed
