"""Text typed by hand, in the form WikiText has, and back: Moses tokenization with `@-@` and its like for joiners."""

import re
from collections.abc import Container

JOINERS = ((".", r"\d"), (",", r"\d"), ("-", r"\w"))  # split between such neighbours: 3.5 -> 3 @.@ 5


def tokenize(text: str, known: Container[str] | None = None) -> str:
    """One line of text -> its words and marks, separated by spaces; with those joiners alone that are `known` words."""
    import sacremoses

    words = sacremoses.MosesTokenizer("en").tokenize(text, return_str=True)
    words = words.replace("&quot;", '"').replace("&apos;", "'")
    for mark, neighbour in JOINERS:
        if known is None or f"@{mark}@" in known:
            words = re.sub(rf"({neighbour}){re.escape(mark)}({neighbour})", rf"\1 @{mark}@ \2", words)
    return words


def detokenize(words: list[str]) -> str:
    """The words of one line -> text as one would type it."""
    import sacremoses

    text = re.sub(r" ?@([.,-])@ ?", r"\1", " ".join(words))
    return sacremoses.MosesDetokenizer("en").detokenize(text.split())
