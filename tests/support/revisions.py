"""Another revision of this project, checked out beside it."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
GIT = ["git", "-C", str(PROJECT)]


def short_commit(revision: str) -> str | None:
    """The abbreviated commit that git knows by this name, or None."""
    asked = [*GIT, "rev-parse", "--short", f"{revision}^{{commit}}"]
    found = subprocess.run(asked, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


@contextlib.contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """The revision's files in a new folder, until the block ends."""
    subprocess.run([*GIT, "worktree", "add", "-q", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*GIT, "worktree", "remove", "--force", str(folder)], check=True)
