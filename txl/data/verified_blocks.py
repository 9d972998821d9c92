"""Encode a large text in blocks, with exactly the ids of encoding it at once.

Tokenizers differ: where a text may be cut depends on the normalizer, the pattern that separates words, and the model.
So a cut is verified instead of assumed. Let a text be B + X + the rest, where X is LOOKAHEAD characters long. The cut
between B and X is right if

    encode(B + X) == some ids + encode(X)

because then nothing in B changes the ids of what follows. "Some ids" are those of B in the presence of what follows:
they are used, and the next block begins at X. If a place does not have this property, other places are tried, and then
the block grows, in the worst case to the whole text. What a tokenizer does only at the start or the end of a text (a
space before the first word, removed white space) therefore never happens inside of a text.
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from txl.data.text_blocks import BLOCK, Span, character_blocks
from txl.errors import ConfigError

LOOKAHEAD = 4096  # characters of X
WINDOW = 512  # characters on both sides of a place that are encoded first, to find out whether it may be a cut
PLACES = 8  # places of each kind that are tried before a block grows
SEARCHED = 1 << 15  # characters in which they are looked for
LONGEST = 1 << 26  # characters that are held in memory at most to find a cut
GROUP = 16  # blocks that are encoded together, on all cores

Encode = Callable[[list[str]], list[list[int]]]  # the ids of each text

# A cut is after a match: where a line begins with a word, before the white space after a word, where any line begins.
PLACES_TO_CUT = [re.compile(pattern) for pattern in (r"\n(?=\S)", r"\S(?=\s)", r"\n")]


def encode_in_blocks(span: Span, encode: Encode, size: int = BLOCK) -> Iterator[np.ndarray]:
    """[T] int64 ids of blocks of about `size` bytes of a text file, one block after the other.

    Raises ConfigError for text that is not UTF-8, and if a long part of it cannot be cut.
    """
    blocks = _cut_blocks(span, encode, size)
    carried = ""  # the text of blocks that are part of the next one, because the cut after them was not right
    least = 0  # characters of the block with which the next cut is tried: doubled, so that all take linear time
    while group := list(islice(blocks, GROUP)):
        encoded = encode([block + following for block, following in group] + [following for _, following in group])
        for i, (block, following) in enumerate(group):
            ids, tail = encoded[i], encoded[len(group) + i]
            if carried:
                block, carried = carried + block, ""
                if following and len(block) < least:
                    carried = block
                    continue
                [ids] = encode([block + following])
            if _ends_with(ids, tail) or not following:
                yield np.array(ids[: len(ids) - len(tail)], np.int64)
                least = 0
            else:
                carried, least = block, 2 * len(block)
                _check_length(least, span)


def _cut_blocks(span: Span, encode: Encode, size: int) -> Iterator[tuple[str, str]]:
    """(block, the LOOKAHEAD characters that follow it), cut where it seems right; nothing follows the last block."""
    parts: list[str] = []
    length = least = 0
    for text in character_blocks(span, size):
        parts.append(text)
        length += len(text)
        if length <= max(least, LOOKAHEAD):
            continue
        waiting = "".join(parts)
        place = _find_cut(waiting, encode)
        if place is not None:
            yield waiting[:place], waiting[place : place + LOOKAHEAD]
        parts = [waiting[place or 0 :]]
        length = len(parts[0])
        least = 2 * length if place is None else 0  # doubled, so that all attempts together take linear time
        _check_length(least, span)
    yield "".join(parts), ""


def _check_length(length: int, span: Span) -> None:
    if length > 2 * LONGEST:
        raise ConfigError(
            f"{span}: the tokenizer finds no place in {LONGEST:,} characters where the text can be cut; "
            "break its lines, or use data.vocab=char or byte"
        )


def _find_cut(text: str, encode: Encode) -> int | None:
    """The last place with LOOKAHEAD characters after it that seems right."""
    last = len(text) - LOOKAHEAD
    first = max(0, last - SEARCHED)
    found = [[match.end() for match in pattern.finditer(text, first, last + 1)][-PLACES:] for pattern in PLACES_TO_CUT]
    found.append(list(range(max(first, last - PLACES) + 1, last + 1)))
    for places in found:
        for place in reversed(places):
            following = text[place : place + WINDOW]
            ids, tail = encode([text[max(0, place - WINDOW) : place] + following, following])
            if 0 < place <= last and _ends_with(ids, tail):
                return place
    return None


def _ends_with(ids: list[int], tail: list[int]) -> bool:
    return len(tail) > 0 and ids[-len(tail) :] == tail
