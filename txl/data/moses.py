"""English text typed by a person -> words as WikiText separates them, and back.

Moses' rules separate words and punctuation. Like WikiText, a mark inside a number or a compound becomes a word of its
own: `3.5` -> `3 @.@ 5`.
"""

import re
from collections.abc import Container

JOINERS = ((".", r"\d"), (",", r"\d"), ("-", r"\w"))  # (mark, the characters on both of its sides)


def moses_tokenize(text: str, known_words: Container[str] | None = None) -> str:
    """Separate the words and punctuation marks of one line by spaces.

    A joiner (`@.@`, `@,@`, `@-@`) is used only if it is in `known_words`; None: all are used.
    """
    import sacremoses

    words: str = sacremoses.MosesTokenizer("en").tokenize(text, return_str=True)
    words = words.replace("&quot;", '"').replace("&apos;", "'")
    for mark, neighbour in JOINERS:
        if known_words is None or f"@{mark}@" in known_words:
            words = re.sub(rf"({neighbour}){re.escape(mark)}({neighbour})", rf"\1 @{mark}@ \2", words)
    return words


def moses_detokenize(words: list[str]) -> str:
    """The words of one line -> the line as a person would type it."""
    import sacremoses

    text = re.sub(r" ?@([.,-])@ ?", r"\1", " ".join(words))
    typed: str = sacremoses.MosesDetokenizer("en").detokenize(text.split())
    return typed
