"""Cut the text of a data set into train, valid and test."""

import itertools
from fractions import Fraction

import numpy as np

from txl.config.data import SPLITS, CutAt, DataConfig, VocabFacts
from txl.data.find_files import Files
from txl.data.text_blocks import (
    CARRIAGE_RETURN,
    LINE_FEED,
    WHITE_SPACE,
    Span,
    SplitSpans,
    byte_blocks,
    character_start,
    place_after,
)
from txl.errors import ConfigError


def split_text(files: Files, data: DataConfig) -> SplitSpans:
    """The spans of text of each split.

    One file is cut in the order train, valid, test: at the sizes data.split_bytes (the rest is not used), else at the
    fractions data.split: fractions of its characters with data.vocab=char, otherwise of its bytes. Two fractions: there
    is no test split. Words and byte pairs are cut where the next line starts. Where a split would then have no text,
    because lines are too long, they are cut after the next "\\r", otherwise after the next white space, and byte pairs
    otherwise between two characters. No character is cut in two.
    """
    if "file" not in files:
        return {key: [Span.whole(path, f"data.{key}") for path in paths] for key, paths in files.items()}
    whole = Span.whole(files["file"][0], "data.file")
    stops = _stops_of_sizes(whole, data) if data.split_bytes else _stops_of_fractions(whole, data)
    option, value = ("split_bytes", data.split_bytes) if data.split_bytes else ("split", data.split)
    spans = {}
    for split, start, stop in zip(SPLITS, [0, *stops[:-1]], stops, strict=False):
        if start >= stop:
            written = str(value).replace(" ", "")
            raise ConfigError(
                f"data.{option}={written} leaves no text for {split}: {whole} has {whole.stop} bytes; "
                "give more text, or a larger share"
            )
        spans[split] = [Span(whole.path, start, stop, "data.file")]
    return spans


def _stops_of_sizes(whole: Span, data: DataConfig) -> list[int]:
    stops = list(itertools.accumulate(data.split_bytes))
    if stops[-1] > whole.stop:
        written = str(data.split_bytes).replace(" ", "")
        raise ConfigError(
            f"data.split_bytes={written} needs {stops[-1]} bytes, {whole} has {whole.stop}; get the whole file, or "
            "cut it by shares: data.split_bytes=[] data.split=[.9,.05,.05]"
        )
    return _places_to_cut(whole, stops, data.vocab.facts)


def _stops_of_fractions(whole: Span, data: DataConfig) -> list[int]:
    shares = list(itertools.accumulate(Fraction(str(share)) for share in data.split))  # 0.9 is exactly 9/10
    if data.vocab.facts.cut_at is CutAt.character:
        total = sum(int(_character_starts(block).sum()) for block in byte_blocks(whole))
        return [*(_offset_of_character(whole, int(total * share)) for share in shares[:-1]), whole.stop]
    positions = [*(int(whole.stop * share) for share in shares[:-1]), whole.stop]
    return _places_to_cut(whole, positions, data.vocab.facts)


def _places_to_cut(whole: Span, positions: list[int], facts: VocabFacts) -> list[int]:
    """Where to cut at or after each position; every split gets some text if that is possible."""
    if facts.cut_at is CutAt.byte:
        return positions
    path, places = whole.path, positions
    if facts.cut_at is CutAt.line:
        for end in (LINE_FEED, CARRIAGE_RETURN, WHITE_SPACE):
            places = [place_after(path, position, end) if position < whole.stop else position for position in positions]
            if all(start < stop for start, stop in itertools.pairwise([0, *places])):
                return places
        if facts.splits_typed_text:  # words: no word is cut
            return places
    return [character_start(path, position) if position < whole.stop else position for position in positions]


def _character_starts(block: bytes) -> np.ndarray:
    """[bytes] bool: whether a character of UTF-8 begins there."""
    return np.asarray(np.frombuffer(block, np.uint8) & 0xC0 != 0x80)


def _offset_of_character(whole: Span, index: int) -> int:
    """The byte where character `index` begins."""
    offset = 0
    for block in byte_blocks(whole):
        starts = _character_starts(block)
        count = int(starts.sum())
        if index < count:
            return offset + int(np.flatnonzero(starts)[index])
        index, offset = index - count, offset + len(block)
    return offset
