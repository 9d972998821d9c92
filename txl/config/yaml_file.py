"""Reading YAML files that may be damaged, or made to do harm."""

from pathlib import Path
from typing import Any

from txl.files import read_text_file

MOST_BYTES = 1 << 20
DEEPEST = 20  # levels; the parser itself crashes at some thousand


def read_yaml(path: Path) -> Any:
    """Returns the content of a YAML or JSON file.

    Raises:
        OSError: The file is missing, no file, or cannot be read.
        ValueError: It is no UTF-8 or no YAML, is too large or nested too deeply, or has aliases: a few lines of them
            can stand for more values than the memory holds.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = read_text_file(path, MOST_BYTES)
    depth = 0
    try:
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"it is nested deeper than {DEEPEST} levels")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has an alias (*name); write the value again")
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
