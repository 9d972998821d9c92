"""`txl score`: the scores of many texts, one per line of a file; memory does not grow with the number of lines.

    file=hyps.txt      TEXT, or ID<TAB>TEXT; the first line decides which. Without ids, a text's id is its line's number
    scores=out.tsv     ID<TAB>NATS<TAB>TOKENS of every line, in their order; out.jsonl: a JSON object per line

A line that cannot be scored is named; its row has nan and 0 tokens, and the command ends with exit code 2.
"""

import contextlib
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import torch

from txl.config.compose import to_dict
from txl.config.output_files import writing_output
from txl.config.schema import EvaluateConfig
from txl.errors import ConfigError, shortened
from txl.evaluate.score import Score
from txl.evaluate.trained_model import Model, open_model
from txl.files import to_json, write_json
from txl.system.console import is_terminal
from txl.tracking.scores import score_from_loss

JSON_LINES = (".jsonl", ".json")  # ends of names; other files are TSV
NAMED = 5  # bad lines that are named one by one
PROGRESS_SECONDS = 10.0  # between two lines of progress; on a terminal one line is written again


@dataclass(frozen=True)
class TextLine:
    """A line of the file."""

    number: int  # from 1
    id: str
    ids: np.ndarray | None  # its tokens; None: it cannot be scored
    problem: str = ""  # why


class LineReader:
    """Reads texts line by line, and counts what was read."""

    def __init__(self, file: BinaryIO, name: str, encode: Callable[[str], np.ndarray]):
        """`name`: of the file, for messages. `encode`: makes token ids of a text."""
        self._file, self._name, self._encode = file, name, encode
        self.lines = self.bytes = 0
        self._has_ids: bool | None = None

    def __iter__(self) -> Iterator[TextLine]:
        for line in self._file:
            self.lines, self.bytes = self.lines + 1, self.bytes + len(line)
            yield self._read(line)

    def _read(self, line: bytes) -> TextLine:
        number, id = self.lines, str(self.lines)
        try:
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
            before, tab, after = text.partition("\t")
            if self._has_ids is None:
                self._has_ids = bool(tab)
            if self._has_ids != bool(tab):
                other = "an id, a tab and a text" if self._has_ids else "a text without a tab"
                return TextLine(number, id, None, f"differs from line 1, which has {other}")
            id, text = (before, after) if tab else (id, text)
            return TextLine(number, id, self._encode(text))
        except UnicodeDecodeError:
            return TextLine(number, id, None, "is not UTF-8")
        except ConfigError as error:
            return TextLine(number, id, None, str(error))


def score_lines(
    lines: Iterable[TextLine], score: Callable[[Iterable[np.ndarray]], Iterator[Score]]
) -> Iterator[tuple[TextLine, Score | None]]:
    """The score of every line, in their order; None for those that cannot be scored.

    `score` yields the scores of texts in their order. It may read ahead: as many lines wait here.
    """
    waiting: deque[TextLine] = deque()

    def texts() -> Iterator[np.ndarray]:
        for line in lines:
            waiting.append(line)
            if line.ids is not None:
                yield line.ids

    for found in score(texts()):
        while waiting[0].ids is None:
            yield waiting.popleft(), None
        yield waiting.popleft(), found
    while waiting:
        yield waiting.popleft(), None


class Totals:
    """Sums over all lines, what is shown of them meanwhile, and the lines that could not be scored."""

    def __init__(self, reader: LineReader, size: int | None):
        """`size`: bytes of the whole file; None: unknown."""
        self._reader, self._size = reader, size
        self.nats, self.tokens, self.unknown, self.texts, self.bad = 0.0, 0, 0, 0, 0
        self.named: list[str] = []
        self._began = self._shown = time.perf_counter()

    def add(self, line: TextLine, score: Score | None) -> None:
        """Count one line, and show the progress now and then."""
        if score is None:
            self.bad += 1
            if len(self.named) < NAMED:
                self.named.append(f"line {line.number}: {shortened(line.problem, 100)}")
                print(f"warning: {self.named[-1]}", file=sys.stderr, flush=True)
        else:
            self.nats, self.tokens, self.texts = self.nats + score.nats, self.tokens + score.tokens, self.texts + 1
            self.unknown += score.unknown
        if time.perf_counter() - self._shown > (0.5 if is_terminal(sys.stderr) else PROGRESS_SECONDS):
            self._shown = time.perf_counter()
            self.show("\r" if is_terminal(sys.stderr) else "\n")

    def show(self, end: str = "\n") -> None:
        """Print how far the scoring is."""
        seconds, count = time.perf_counter() - self._began, self.texts + self.bad
        share = f" {self._reader.bytes / self._size:4.0%}" if self._size else ""
        speed = f"{count / seconds:,.1f} lines/s {self.tokens / seconds:,.0f} tok/s"
        print(f"scored {count:,} lines{share} | {speed} | loss {self.loss:.3f} ", end=end, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def telling_what_a_stop_leaves(self, scores: str | None) -> Iterator[None]:
        """After Ctrl-C or SIGTERM, say how many rows there are in the unfinished file of `scores=`."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if is_terminal(sys.stderr):
                print(end="\r\x1b[K", file=sys.stderr)  # over the progress
            if scores is not None and _partial(scores).exists():
                rows = f"the rows of the first {self.texts + self.bad:,} lines"
                print(f"{_partial(scores)} has {rows}; the same command begins anew", file=sys.stderr, flush=True)
            raise

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan

    def record(self) -> dict[str, Any]:
        """The sums, for JSON."""
        seconds = time.perf_counter() - self._began
        sums = {"nats": self.nats, "tokens": self.tokens, "unknown": self.unknown, "texts": self.texts}
        scores = {"loss": self.loss, **{key: score_from_loss(self.loss, key) for key in ("ppl", "bpc")}}
        return sums | scores | {"bad_lines": self.bad, "seconds": seconds, "texts_per_second": self.texts / seconds}


def score_file(config: EvaluateConfig, device: torch.device) -> int:
    """Score every line of `file=`; returns the exit code."""
    assert config.file is not None, "the rules have checked it"
    with _opened(config.file) as file:
        context = read_context(config.context)
        model = open_model(config, device)
        reader = LineReader(file, config.file, model.encode)
        totals = Totals(reader, _size_of(config.file))
        found = score_lines(reader, lambda texts: _scores(model, texts, context, config))
        with _written(config.scores) as out:
            as_json = config.scores is not None and config.scores.endswith(JSON_LINES)
            with totals.telling_what_a_stop_leaves(config.scores):
                for line, score in found:
                    out.write((_json_row if as_json else _tsv_row)(line, score, config.token_losses) + "\n")
                    totals.add(line, score)
    totals.show()
    if config.json:
        settings = {"context": config.context, "geometry": to_dict(model.geometry), "runtime": model.runtime.name}
        record = {"checkpoint": str(model.checkpoint), "precision": config.precision.name.name, **settings}
        with writing_output("json", config.json):
            write_json(Path(config.json), record | totals.record(), indent=1)
    if totals.bad or not totals.texts:
        counted = f"{totals.bad:,} of {reader.lines:,} lines were not scored: {'; '.join(totals.named)}"
        raise ConfigError(f"file={shortened(config.file)}: {counted if totals.bad else 'it holds no line'}")
    return 0


def _scores(model: Model, texts: Iterable[np.ndarray], context: str | None, config: EvaluateConfig) -> Iterator[Score]:
    if context is None:
        return model.score_in_sequence(texts, token_losses=config.token_losses)
    return model.score_stream(texts, model.encode_context(context), config.token_losses)


def read_context(value: str) -> str | None:
    """The text before every text: empty for `none`, None for `previous`, else what the file holds.

    Raises ConfigError if the file cannot be read.
    """
    if value in ("none", "previous"):
        return "" if value == "none" else None
    try:
        text = Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"context={value} cannot be read ({reason}); use none, previous, or a text file") from None
    if not text:
        raise ConfigError(f"context={value} is empty; use context=none, or a file with a line break for a line's start")
    return text


@contextlib.contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"file={name} cannot be read ({error.strerror}); name a text file, or - for input") from None
    with file:
        yield file


def _size_of(name: str) -> int | None:
    return Path(name).stat().st_size if Path(name).is_file() else None


@contextlib.contextmanager
def _written(name: str | None) -> Iterator[TextIO]:
    """Where the rows go. The file has its name when it is complete; until then they are in NAME.partial."""
    if name is None or (Path(name).exists() and not Path(name).is_file()):
        with contextlib.nullcontext(sys.stdout) if name is None else open(name, "w", encoding="utf-8") as out:
            yield out
        return
    with writing_output("scores", name), open(_partial(name), "w", encoding="utf-8") as out:
        yield out
    _partial(name).replace(name)


def _partial(name: str) -> Path:
    return Path(name).with_name(Path(name).name + ".partial")


def _tsv_row(line: TextLine, score: Score | None, token_losses: bool) -> str:
    nats, tokens = (score.nats, score.tokens) if score else (math.nan, 0)
    row = f"{line.id}\t{nats:.8g}\t{tokens}"
    if not token_losses:
        return row
    return f"{row}\t{' '.join(f'{loss:.6g}' for _, loss in (score and score.token_losses) or ())}"


def _json_row(line: TextLine, score: Score | None, token_losses: bool) -> str:
    row: dict[str, Any] = {"id": line.id, "nats": None, "tokens": 0}
    if score is None:
        return json.dumps(row | {"problem": line.problem})
    row |= {"nats": score.nats, "tokens": score.tokens, "unknown": score.unknown}
    return to_json(row | ({"token_losses": score.token_losses} if token_losses else {}))
