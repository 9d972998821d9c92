"""The project's documents: commands, links and code that stand in them."""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").rglob("*.md"))]
PROGRAMS = ("python", "txl", "make", "torchrun", "srun")


@dataclass(frozen=True)
class Code:
    """A line of a block, or a span between backticks."""

    text: str
    place: str  # docs/data.md:12
    in_block: bool = False


def name_of(document: Path) -> str:
    """`docs/data.md`."""
    return document.relative_to(PROJECT).as_posix()


def code_in(document: Path) -> list[Code]:
    """Lines of fenced blocks, those that end with a backslash joined to the next, and spans between backticks."""
    found, fenced, python, begun, start = [], False, False, "", 0
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced, python = not fenced, line.strip() == "```python"
        elif python:
            continue  # no command
        elif not fenced:
            found += [Code(span, f"{name_of(document)}:{number}") for span in re.findall(r"`([^`]+)`", line)]
        else:
            start = start if begun else number
            begun += (line.lstrip() if begun else line).removesuffix("\\")
            if not line.endswith("\\"):
                found.append(Code(begun, f"{name_of(document)}:{start}", in_block=True))
                begun = ""
    return found


def words_of(code: str) -> list[str]:
    """The words of a command, without what explains it: after #, or in a column of its own."""
    plain = re.split(r"\s#\s|\s{3,}", code.strip())[0].replace("…", "...")
    try:
        return shlex.split(plain)
    except ValueError:  # prose with an apostrophe
        return []


def commands() -> list[tuple[list[str], str]]:
    """(words, place) of everything in the documents and help texts that is typed into a shell to use this project."""
    codes = [code for document in DOCUMENTS for code in code_in(document)]
    for module in sorted((PROJECT / "txl").rglob("*.py")):
        lines = (ast.get_docstring(ast.parse(module.read_text())) or "").splitlines()
        codes += [Code(line, name_of(module)) for line in lines if line.startswith("  ") and "txl " in line[:8]]
    found = [(words_of(code.text), code.place) for code in codes]
    return [(words, place) for words, place in found if len(words) > 1 and words[0].rpartition("/")[2] in PROGRAMS]


def block_commands(document: Path) -> list[tuple[list[str], str]]:
    """(words, place) of the commands in a document's blocks, in their order; mentions between backticks are none."""
    found = [(words_of(code.text), code.place) for code in code_in(document) if code.in_block]
    return [(words, place) for words, place in found if len(words) > 1 and words[0].rpartition("/")[2] in PROGRAMS]


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
