"""What the project's own source code says."""

import ast
from collections.abc import Iterable
from pathlib import Path


def names_read_in(paths: Iterable[Path]) -> set[str]:
    """Names that are read as `something.name`, or as getattr(something, "name"), in some of these files."""
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    return read | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
