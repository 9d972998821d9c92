"""What every module of txl/ keeps to: docstrings that explain parameters, and one meaning per name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "txl"
MODULES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """(dotted name, definition) of public functions, classes and methods; not of what stands inside a function."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of the parameters, without self and cls."""
    args = node.args
    named = [*args.posonlyargs, *args.args, *([args.vararg] if args.vararg else []), *args.kwonlyargs]
    names = [arg.arg for arg in [*named, *([args.kwarg] if args.kwarg else [])]]
    return names[1:] if names and names[0] in ("self", "cls") else names


def documented(docstring: str) -> set[str]:
    """Names in the section `Args:` of a docstring, Google style."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^ +([\w, *]+?)(?: \([^)]*\))?:", section[1], re.MULTILINE) if section else []
    return {name.strip(" *") for line in lines for name in line.split(",")}


CLASSES = {node.name: node for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def inherited(owner: ast.ClassDef, method: str) -> set[str]:
    """Parameters of a method that a base class (or protocol) of this package explains."""
    explained: set[str] = set()
    for base in owner.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        parent = CLASSES.get(getattr(name, "id", ""))
        if parent:
            for node in parent.body:
                if isinstance(node, ast.FunctionDef) and node.name == method:
                    explained |= documented(ast.get_docstring(node) or "")
            explained |= inherited(parent, method)
    return explained


def is_overload(node: Definition) -> bool:
    """Is it one of the types of a function that is defined below it?"""
    return any(isinstance(one, ast.Name) and one.id == "overload" for one in node.decorator_list)


def missing_docstrings(tree: ast.Module) -> Iterator[str]:
    """What a module's public definitions lack, one line each."""
    if not ast.get_docstring(tree):
        yield "the module has no docstring"
    owners = {id(node): owner for owner in tree.body if isinstance(owner, ast.ClassDef) for node in owner.body}
    for name, node in public(tree.body):
        docstring = ast.get_docstring(node)
        if is_overload(node):
            continue
        if not docstring:
            yield f"line {node.lineno}: {name} has no docstring"
        elif not isinstance(node, ast.ClassDef) and len(parameters(node)) >= 4:
            owner = owners.get(id(node))
            explained = documented(docstring) | (inherited(owner, node.name) if owner else set())
            left_out = [name for name in parameters(node) if name not in explained]
            if left_out:
                yield f"line {node.lineno}: {name} does not explain {', '.join(left_out)} in `Args:`"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_public_definition_has_a_docstring(module):
    assert list(missing_docstrings(MODULES[module])) == []


def test_no_public_name_is_defined_in_two_modules():
    homes: dict[str, list[str]] = {}
    for module, tree in MODULES.items():
        for name in {name for name, _ in public(tree.body) if "." not in name}:
            homes.setdefault(name, []).append(module)
    twice = {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1}
    assert {name: modules for name, modules in twice.items() if name != "main"} == {}
