"""Text typed by hand, in the form WikiText has, and back: Moses tokenization with `@-@` and its like for joiners."""

import re

JOINERS = ((".", r"\d"), (",", r"\d"), ("-", r"\w"))  # split between such neighbours: 3.5 -> 3 @.@ 5


def tokenize(text: str) -> str:
    """One line of text -> its words and marks, separated by spaces."""
    import sacremoses

    words = sacremoses.MosesTokenizer("en").tokenize(text, return_str=True)
    words = words.replace("&quot;", '"').replace("&apos;", "'")
    for mark, neighbour in JOINERS:
        words = re.sub(rf"({neighbour}){re.escape(mark)}({neighbour})", rf"\1 @{mark}@ \2", words)
    return words


def detokenize(words: list[str]) -> str:
    """The words of one line -> text as one would type it."""
    import sacremoses

    text = re.sub(r" ?@([.,-])@ ?", r"\1", " ".join(words))
    return sacremoses.MosesDetokenizer("en").detokenize(text.split())
