"""Writes docs/configuration.md: every option with its values, its default and its meaning.

    python tools/configuration_reference.py          # after a change of txl/config/ or conf/

Types and meanings come from the dataclasses in txl/config/ and the comments beside their fields; where a field has no
comment, the meaning is the comment beside its value in conf/. Defaults are those of conf/.
"""

import inspect
import io
import json
import math
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))  # this is run as a script

from txl.config.bounds import BOUNDS, Bounds  # noqa: E402
from txl.config.compose import register_types  # noqa: E402
from txl.config.schema import BenchmarkConfig, BenchmarkSection, EvaluateConfig, RunConfig  # noqa: E402

CONF = PROJECT / "conf"
MOST_NAMED = 1024
TARGET = PROJECT / "docs" / "configuration.md"
INTRODUCTION = """# Configuration reference

Every option of `txl train`, `txl evaluate` and `txl benchmark`. Made by `python tools/configuration_reference.py`
from `txl/config/` and `conf/`; do not edit it by hand.

An option is given as `key=value`: `txl train train.max_step=2000`. A group, such as `model=large`, chooses a file of
`conf/` that sets many options at once; options on the command line win over every file. `txl train --cfg job --resolve`
prints the values that a command has in the end.

*Default* is the value without any choice: `txl train` alone, which is `model=base data=wt103 optimizer=lamb
scheduler=cosine precision=fp32 hardware=auto cluster=local tracking=none`. In it, `${key}` is the value of another
option and `${by_recipe:a,b}` is a for one node and b for several (`recipe`); `${oc.env:NAME,value}` is an environment
variable, or the value where it is not set. *null* means: not given.
"""


@dataclass(frozen=True)
class Option:
    """One key of a configuration."""

    key: str
    kind: Any  # its type
    field: Field[Any]
    meaning: str  # the comment beside its field

    @property
    def values(self) -> str:
        """What it can be, in words."""
        return in_words(self.kind, self.field.metadata.get(BOUNDS))


def in_words(kind: Any, bounds: Bounds | None) -> str:
    """A type in words, with the range of its numbers."""
    if get_origin(kind) is UnionType:
        parts = [in_words(one, bounds) for one in get_args(kind) if one is not type(None)]
        return " or ".join(parts) + ("; or null" if type(None) in get_args(kind) else "")
    if get_origin(kind) is list:
        return f"list of: {in_words(get_args(kind)[0], None)}"
    if get_origin(kind) is dict:
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{one.name}`" for one in kind)
    if kind is bool:
        return "`true`, `false`"
    if kind is str:
        return "text"
    number = "whole number" if kind is int else "number"
    if bounds is None:
        return number
    if bounds.most > MOST_NAMED:  # such a bound only refuses mistakes
        bounds = replace(bounds, most=math.inf)
    limits = str(bounds).removeprefix("must be ")
    return f"{number}, {limits}" if bounds.includes_lowest else f"{number} {limits}"


@cache
def comments_of(section: type) -> dict[str, str]:
    """The comment beside (or right above) every field of a dataclass, by name."""
    lines, start = inspect.getsourcelines(section)
    module = Path(inspect.getfile(section)).read_text().splitlines()
    found: dict[str, str] = {}
    above: list[str] = []
    name, depth = "", 0
    for line in module[start - 1 : start - 1 + len(lines)]:
        comment = comment_in(line)
        if depth == 0 and line.strip().startswith("#"):
            above.append(comment)
            continue
        begins = re.match(r"    (\w+): ", line) if depth == 0 else None
        if begins:
            name = begins[1]
            found[name] = " ".join(above)
        above = []
        if name and comment:
            found[name] = comment
        depth += line.count("(") - line.count(")") if not comment else 0
        depth = max(depth, 0)
    return found


def comment_in(line: str) -> str:
    """The text after `#` in a line of Python, or nothing."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip() + "\n").readline))
    except (tokenize.TokenError, IndentationError):
        return line.partition("  # ")[2].strip()
    return next((token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT), "")


@cache
def yaml_comments(file: str) -> dict[str, str]:
    """The comment beside every value of a file of conf/, by dotted key."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (CONF / file).read_text().splitlines():
        match = re.match(r"( *)(\w+):(.*)", line)
        if match is None:
            continue
        indent = len(match[1])
        path = [(deep, key) for deep, key in path if deep < indent] + [(indent, match[2])]
        _, _, comment = match[3].partition(" # ")
        if comment:
            found[".".join(key for _, key in path)] = comment.strip()
    return found


def options_of(section: type, prefix: str = "", but: tuple[str, ...] = ()) -> Iterator[Option]:
    """The options of a configuration, those of its sections included. `but`: fields to leave out."""
    hints, comments = get_type_hints(section), comments_of(section)
    for one in fields(section):
        if one.name in but:
            continue
        if is_dataclass(hints[one.name]):
            yield from options_of(hints[one.name], f"{prefix}{one.name}.")
        else:
            yield Option(prefix + one.name, hints[one.name], one, comments.get(one.name, ""))


def defaults_of(command: str) -> dict[str, Any]:
    """The values of a command without arguments, as conf/ has them."""
    register_types()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = OmegaConf.to_container(compose(command), resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def shown_value(values: dict[str, Any], key: str) -> str:
    """The default of a dotted key, as one writes it."""
    found: Any = values
    for part in key.split("."):
        found = found[part]
    if found is None or isinstance(found, bool):
        return {None: "null", True: "true", False: "false"}[found]
    if found == "???":
        return "must be given"
    if isinstance(found, Enum):
        return found.name
    if isinstance(found, list | dict):
        return re.sub(r'[" ]', "", json.dumps(found, default=lambda one: one.name))
    return str(found)


def table(options: list[Option], command: str) -> Iterator[str]:
    """A table of options, and the meanings of the choices among them."""
    values, comments = defaults_of(command), yaml_comments(f"{command}.yaml")
    yield "| option | values | default | meaning |"
    yield "|---|---|---|---|"
    for option in options:
        meaning = option.meaning or comments.get(option.key, "")
        meaning = re.sub(r"<(\w)", r"&lt;\1", meaning)
        cells = [f"`{option.key}`", option.values, f"`{shown_value(values, option.key)}`", meaning]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
    for option in options:
        kinds = [option.kind, *get_args(option.kind)]
        for kind in (one for one in kinds if isinstance(one, type) and issubclass(one, Enum)):
            meanings = enum_comments(kind)
            if meanings:
                yield f"`{option.key}`: " + "; ".join(f"`{name}`: {text}" for name, text in meanings.items()) + "."
                yield ""


@cache
def enum_comments(kind: type[Enum]) -> dict[str, str]:
    """The comments beside the members of an enumeration, by name."""
    found = {}
    for line in inspect.getsource(kind).splitlines():
        member = re.match(r"    (\w+) = .*?  # (.*)", line)
        if member:
            found[member[1]] = member[2]
    return found


def groups() -> Iterator[str]:
    """The files of conf/ that can be chosen, with the first comment of each."""
    yield "| group | choices |"
    yield "|---|---|"
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name not in ("published", "site")):
        yield f"| `{folder.name}=` | {', '.join(f'`{file.stem}`' for file in sorted(folder.glob('*.yaml')))} |"
    yield ""


def reference() -> str:
    """The whole page."""
    sections: dict[str, Any] = {one.name: get_type_hints(RunConfig)[one.name] for one in fields(RunConfig)}
    parts = {name: kind for name, kind in sections.items() if isinstance(kind, type) and is_dataclass(kind)}
    lines = [*INTRODUCTION.splitlines(), "", "## Groups", "", *groups()]
    lines += ["## One run", "", *table(list(options_of(RunConfig, but=tuple(parts))), "train")]
    for name, kind in parts.items():
        lines += [f"## {name}", "", (inspect.getdoc(kind) or "").splitlines()[0], ""]
        lines += table(list(options_of(kind, f"{name}.")), "train")
    lines += ["## txl evaluate, txl generate", "", "`precision`, `hardware` and `cluster` are as above.", ""]
    lines += table(list(options_of(EvaluateConfig, but=("precision", "hardware", "cluster"))), "evaluate")
    lines += ["## txl benchmark", "", "Every option of `txl train`, and these.", ""]
    suite = [option for option in options_of(BenchmarkConfig, but=tuple(parts)) if option.key == "suite"]
    lines += table([*suite, *options_of(BenchmarkSection, "benchmark.")], "benchmark")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def without_meaning() -> list[str]:
    """The options that neither a dataclass nor conf/ explains."""
    return re.findall(r"^\| `(\S+)` \|.*\|  \|$", reference(), re.MULTILINE)


if __name__ == "__main__":
    TARGET.write_text(reference())
    if without_meaning():
        sys.exit(f"error: no comment beside {', '.join(without_meaning())}")
