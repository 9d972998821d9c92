"""The checkpoints of one run: written under another name, flushed, renamed; damaged ones are never counted.

At every instant an intact checkpoint can be found (find.py), once the first one was saved.
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txl.checkpoint.checkpoint_files import link_or_copy, publish_checkpoint, write_checkpoint_file
from txl.checkpoint.find import (
    MANIFEST,
    SET_ASIDE,
    CheckpointError,
    is_intact,
    read_elsewhere,
    read_pointer,
    remove_checkpoint,
    step_folders,
    step_of,
    verify_checkpoint,
)
from txl.checkpoint.little_room import (
    NO_ROOM,
    finish_replacement,
    forget_elsewhere,
    other_disk,
    replace_by_way_of,
)
from txl.files import make_folder, sync_folder
from txl.system.distributed import barrier, gather_objects
from txl.system.world import World

log = logging.getLogger(__name__)


@dataclass
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path
    world: World
    keep: int = 2  # how many of the latest intact checkpoints stay; the best one stays too
    save_all: bool = False  # delete none
    _written: int | None = None  # the latest step that this process wrote

    def of_step(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step_{step}"

    def save(
        self,
        step: int,
        shared: dict[str, Any],
        shard: dict[str, Any],
        documents: dict[str, dict[str, Any]],
        best: bool = False,
    ) -> Path:
        """Write step_<step> from all ranks. This is a collective call: every rank makes it at the same step.

        Args:
            step: the number of updates that the weights have had.
            shared: file stem -> object to store as <stem>.pt; needed from rank 0 only.
            shard: this rank's own object, stored as rank_<rank>.pt.
            documents: file name -> JSON document; needed from rank 0 only.
            best: the checkpoint has the lowest validation loss so far.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: a file cannot be written, for instance because the disk is full.
        """
        final, partial = self.of_step(step), self.folder / f".step_{step}.partial"
        is_main = self.world.is_main
        try:
            if step != self._written:  # a folder that another process wrote may be damaged: write it again
                files: dict[str, Any] = {f"rank_{self.world.rank}.pt": shard}
                if is_main:
                    files |= {f"{stem}.pt": value for stem, value in shared.items()} | documents
                try:
                    if is_main:
                        shutil.rmtree(partial, ignore_errors=True)
                        make_folder(partial)
                    barrier()
                    self._write(partial, step, files)
                    if is_main:
                        self._publish(partial, final)
                        if self._written is None:  # the run folder and checkpoints/ may be new themselves
                            for folder in (self.folder.parent, *self.folder.parent.absolute().parents[:2]):
                                sync_folder(folder)
                except OSError as error:
                    self._replace_only_one(error, final, best, lambda folder: self._write(folder, step, files))
                self._written = step
            if is_main:
                self._point("last", final)
                if best:
                    self._point("best", final)
                self._prune()
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint {final} cannot be written: {error.strerror or error}; the checkpoint before it is intact: "
                "make room or mend the disk, then continue with resume=auto"
            ) from None
        barrier()
        return final

    def rewind(self, step: int, best_step: int, resumed: Path | None = None) -> bool:
        """Prepare the folder for a run that goes on from `step` (0: from the beginning). This is a collective call.

        Checkpoints of later steps are damaged, or belong to a run that is not continued: they are set aside. So are
        damaged checkpoints that `keep` would count. best and last are set to checkpoints that remain.

        Args:
            step: the step to go on from.
            best_step: the step with the lowest validation loss so far, according to the checkpoint.
            resumed: the checkpoint that the run goes on from, if there is one. It may have been set aside, or be in
                another folder; it becomes a checkpoint of this run.

        Returns:
            Whether the checkpoint of `best_step` is there and intact; the same on every rank.
        """
        barrier()  # the other ranks have read the checkpoint, which may be renamed now
        found = False
        if self.world.is_main and (self.folder.is_dir() or resumed is not None):
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in step_folders(self.folder):
                if step_of(path) > step:
                    log.warning("%s is later than step %d, from which this run goes on: set aside", path, step)
                    self._set_aside(path)
            last, best = self.of_step(step), self.of_step(best_step)
            if resumed is not None and resumed.resolve() != last.resolve():
                self._adopt(resumed, last, best.name)
            self._set_damaged_aside(step)
            found = is_intact(best)
            for name, target, there in (("last", last, last.exists()), ("best", best, found)):
                if there:
                    self._point(name, target)
                else:
                    self._remove_pointer(name)
        return bool(gather_objects(found)[0])

    def _write(self, folder: Path, step: int, files: dict[str, Any]) -> None:
        """Write the files of all ranks, and then the manifest. Collective."""
        entries = {name: write_checkpoint_file(folder / name, value) for name, value in files.items()}
        all_entries = gather_objects(entries)
        if self.world.is_main:
            merged = {name: entry for part in all_entries for name, entry in part.items()}
            manifest = {"step": step, "world_size": self.world.world_size, "files": merged}
            write_checkpoint_file(folder / MANIFEST, manifest)

    # ------------------------------------------------------------------ on rank 0

    def _replace_only_one(self, error: OSError, final: Path, best: bool, write: Callable[[Path], None]) -> None:
        """Save where the disk has room for one checkpoint only, with keep=1. Raises the error if that cannot be."""
        shutil.rmtree(self.folder / f".{final.name}.partial", ignore_errors=True)
        one = self.keep == 1 and not self.save_all and self.world.world_size == 1
        temporary = other_disk(self.folder) if error.errno in NO_ROOM and one else None
        if temporary is None:
            raise error
        log.warning(
            "%s has no room for a second checkpoint: %s is written to %s first, then the old one is deleted",
            self.folder,
            final.name,
            temporary,
        )
        replace_by_way_of(temporary, self.folder, final.name, "" if best else self._best_name(), write)

    def _best_name(self) -> str:
        best = read_pointer(self.folder / "best")
        return best.resolve().name if best else ""

    def _publish(self, partial: Path, final: Path) -> None:
        """Rename `partial` to `final`. A checkpoint that is there already can be found until it is replaced."""
        replaced = self.folder / f".{final.name}.replaced"
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(final, replaced)
        publish_checkpoint(partial, final)
        shutil.rmtree(replaced, ignore_errors=True)
        for path in (self.folder / SET_ASIDE).glob(f"{final.name}*"):  # an earlier attempt at this step
            if path.name == final.name or path.name.startswith(f"{final.name}."):
                remove_checkpoint(path)

    def _adopt(self, resumed: Path, final: Path, best: str) -> None:
        """Make a checkpoint from elsewhere a checkpoint of this run, unless the run has its own of that step."""
        if is_intact(final):
            return
        if resumed == read_elsewhere(self.folder):
            finish_replacement(self.folder, best)
            return
        self._set_aside(final)
        if resumed.parent.name == SET_ASIDE or resumed.name == f".{final.name}.replaced":
            os.rename(resumed, final)
            return
        partial = self.folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(resumed, partial, copy_function=link_or_copy)
        publish_checkpoint(partial, final)

    def _set_aside(self, path: Path) -> None:
        """Move a folder, if it exists, to set_aside/ under a name that is free there."""
        if not path.exists() and not path.is_symlink():
            return
        aside = self.folder / SET_ASIDE / path.name
        aside.parent.mkdir(exist_ok=True)
        number = 2
        while aside.exists():
            aside = aside.with_name(f"{path.name}.{number}")
            number += 1
        os.rename(path, aside)

    def _set_damaged_aside(self, step: int) -> None:
        """Set damaged checkpoints before `step` aside, as far as they would be counted by `keep`."""
        intact = 1  # the one that the run goes on from
        for path in [] if self.save_all else step_folders(self.folder):
            if step_of(path) < step and intact < self.keep:
                try:
                    verify_checkpoint(path)
                    intact += 1
                except CheckpointError as error:
                    log.warning("%s: set aside", error)
                    self._set_aside(path)

    def _prune(self) -> None:
        """Delete all checkpoints but the latest `keep` and the best one, and what earlier attempts left unfinished."""
        if not self.save_all:
            kept = {path.name for path in step_folders(self.folder)[: max(1, self.keep)]} | {self._best_name()}
            for path in step_folders(self.folder):
                if path.name not in kept:
                    remove_checkpoint(path)
        forget_elsewhere(self.folder)
        for pattern in (".step_*.partial", ".step_*.removed"):
            for stale in self.folder.glob(pattern):
                shutil.rmtree(stale, ignore_errors=True)

    def _point(self, name: str, target: Path) -> None:
        """Make best or last name a checkpoint, in one step: as a link, or as a text file if links cannot be made."""
        pointer, fresh = self.folder / name, self.folder / f".{name}.new"
        if pointer.is_dir() and not pointer.is_symlink():  # the copy of a run whose links were followed
            self._set_aside(pointer)
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(target.name)
        except OSError:
            fresh.write_text(f"{target.name}\n")
        os.replace(fresh, pointer)
        sync_folder(self.folder)

    def _remove_pointer(self, name: str) -> None:
        pointer = self.folder / name
        if pointer.is_dir() and not pointer.is_symlink():
            self._set_aside(pointer)
        else:
            pointer.unlink(missing_ok=True)
