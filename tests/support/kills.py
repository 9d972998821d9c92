"""End a piece of work before its n-th file operation, as if the process had been killed."""

import sys
from collections.abc import Callable, Iterator

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "shutil.rmtree"}


class KilledError(BaseException):
    """Stands for the death of the process: nothing handles it."""


class _Killer:
    """An audit hook: Python calls it before file operations. Hooks cannot be removed, so there is one for all tests."""

    def __init__(self) -> None:
        self.folder, self.left = "", -1
        sys.addaudithook(self._before)

    def _before(self, event: str, arguments: tuple) -> None:
        if self.left < 0 or event not in OPERATIONS or not str(arguments[0]).startswith(self.folder):
            return
        if event == "open" and not any(letter in str(arguments[1] or "") for letter in "wax+"):
            return
        if self.left == 0:
            raise KilledError
        self.left -= 1


_killer: list[_Killer] = []


def killed_before(operation: int, folder, work: Callable[[], object]) -> bool:
    """Do the work until before its n-th file operation in a folder (from 0). Returns whether it was killed."""
    if not _killer:
        _killer.append(_Killer())
    _killer[0].folder, _killer[0].left = str(folder), operation
    try:
        work()
    except KilledError:
        return True
    finally:
        _killer[0].left = -1
    return False


def every_kill(folder, prepare: Callable[[], Callable[[], object]]) -> Iterator[int]:
    """For every file operation: prepare, do the work that `prepare` returns up to there, and yield the operation."""
    operation = 0
    while True:
        work = prepare()
        if not killed_before(operation, folder, work):
            assert operation > 3, "the work has next to no file operations"
            return
        yield operation
        operation += 1
