"""The checkpoints of one run: written under another name, flushed, renamed; checked before they are used.

    checkpoints/step_600/   one checkpoint (its files: checkpoint_files.py)
    checkpoints/last, best  links to step folders
    checkpoints/set_aside/  checkpoints that are later than the one from which the run went on; the run replaces them

A folder that was not renamed yet is not a checkpoint. A checkpoint that is damaged is reported and passed over; the run
goes on from the one before it.
"""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txl.checkpoint.checkpoint_files import (
    MANIFEST,
    CheckpointError,
    is_intact,
    publish_checkpoint,
    sync_folder,
    verify_checkpoint,
    write_checkpoint_file,
)
from txl.system.distributed import barrier, gather_objects
from txl.system.world import World

log = logging.getLogger(__name__)


@dataclass
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path
    world: World
    keep: int = 2  # how many of the latest checkpoints stay; the best one stays too
    save_all: bool = False  # delete none
    _written: int | None = None  # the latest step that this process wrote

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
        """
        final, partial = self.folder / f"step_{step}", self.folder / f".step_{step}.partial"
        is_main = self.world.is_main
        if step != self._written:  # a folder that another process wrote may be damaged: write it again
            if is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            barrier()
            files: dict[str, Any] = {f"rank_{self.world.rank}.pt": shard}
            if is_main:
                files |= {f"{stem}.pt": value for stem, value in shared.items()} | documents
            entries = {name: write_checkpoint_file(partial / name, value) for name, value in files.items()}
            all_entries = gather_objects(entries)
            if is_main:
                merged = {name: entry for part in all_entries for name, entry in part.items()}
                manifest = {"step": step, "world_size": self.world.world_size, "files": merged}
                write_checkpoint_file(partial / MANIFEST, manifest)
                replaced = _set_aside(final)
                publish_checkpoint(partial, final)
                shutil.rmtree(replaced, ignore_errors=True)
            self._written = step
        if is_main:
            _set_link(self.folder / "last", final)
            if best:
                _set_link(self.folder / "best", final)
            self._prune()
        barrier()
        return final

    def steps(self) -> list[Path]:
        """The folders of finished checkpoints, newest first."""
        found = [path for path in self.folder.glob("step_*") if (path / MANIFEST).exists()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)

    def newest(self) -> Path | None:
        """The newest checkpoint that is intact, or None. Logs a warning for every damaged one."""
        for path in self.steps():
            try:
                verify_checkpoint(path)
                return path
            except CheckpointError as error:
                log.warning("%s; trying the checkpoint before it", error)
        return None

    def rewind(self, step: int, best_step: int) -> bool:
        """Prepare the folder for a run that goes on from `step`. This is a collective call.

        Checkpoints of later steps are damaged, or belong to a run that is not continued: they are set aside. The links
        are set to the checkpoints that remain.

        Returns:
            Whether the checkpoint of `best_step` is there and intact; the same on every rank.
        """
        best, found = self.folder / f"step_{best_step}", False
        if self.world.is_main and self.folder.exists():
            for path in self.folder.glob("step_*"):
                if int(path.name.removeprefix("step_")) > step:
                    log.warning("%s is later than step %d, from which this run goes on: set aside", path, step)
                    _set_aside(path)
            found = is_intact(best)
            last = self.folder / f"step_{step}"
            for link, target, there in (("last", last, last.exists()), ("best", best, found)):
                if there:
                    _set_link(self.folder / link, target)
                else:
                    (self.folder / link).unlink(missing_ok=True)
        return bool(gather_objects(found)[0])

    def _prune(self) -> None:
        """Delete all checkpoints but the latest `keep` and the best one, and unfinished folders of earlier attempts."""
        if self.save_all:
            return
        best = self.folder / "best"
        kept = {path.name for path in self.steps()[: max(1, self.keep)]}
        kept |= {os.readlink(best)} if best.is_symlink() else set()
        for path in self.steps():
            if path.name not in kept:
                shutil.rmtree(path)
        for stale in self.folder.glob(".step_*.partial"):
            shutil.rmtree(stale, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    """Move a step folder, if it exists, to set_aside/ beside it. Returns its path there."""
    aside = folder.parent / "set_aside" / folder.name
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        os.rename(folder, aside)
    return aside


def _set_link(link: Path, target: Path) -> None:
    """Make `link` name another folder beside it, in one step that cannot be interrupted halfway."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.name)
    os.replace(fresh, link)
    sync_folder(link.parent)
