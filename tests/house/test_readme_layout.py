"""README's layout names every folder and every file at the top, and nothing that is not there."""

import fnmatch
import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def layout() -> list[tuple[str, str]]:
    """(path, what is said about it) of every entry; folders end with a slash."""
    block = re.search(r"^## Layout\n+```\n(.*?)^```", (PROJECT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block, "README.md has no section Layout with a block"
    entries = []
    for line in block[1].splitlines():
        names, _, about = line.partition("#")
        entries += [(name, about.strip()) for name in names.split()]
    return entries


def entries(folder: Path) -> set[str]:
    """Paths of the folders and files in a folder of the project; not what .gitignore names, nor hidden files."""
    top = folder == PROJECT
    patterns = [line for line in (PROJECT / ".gitignore").read_text().splitlines() if line and line[0] != "#"]
    ignored = [pattern.strip("/") for pattern in patterns if top or pattern[0] != "/"]
    found = set()
    for path in folder.iterdir():
        hidden = path.name == ".git" or path.name.startswith(".") and path.is_file()
        if not hidden and not any(fnmatch.fnmatch(path.name, pattern) for pattern in ignored):
            found.add(path.relative_to(PROJECT).as_posix() + "/" * path.is_dir())
    return found


def there() -> set[str]:
    """What the layout is to name: all at the top, and what of txl/ is a folder or a module other than __init__."""
    package = {path for path in entries(PROJECT / "txl") if path.endswith(("/", ".py"))} - {"txl/__init__.py"}
    return entries(PROJECT) - {"txl/"} | package


def test_the_layout_is_complete_and_names_nothing_else():
    named = [name for name, _ in layout()]
    assert sorted(named) == sorted(set(named)), "named twice"
    assert set(named) - there() == set(), "named, but not there"
    assert there() - set(named) == set(), "there, but not named"


def test_every_folder_of_the_package_is_explained():
    assert [name for name, about in layout() if name.startswith("txl/") and not about] == []
