"""Checkpoints that survive anything: written aside, synced, renamed; checked before they are believed.

    checkpoints/step_600/   model.pt optimizer.pt        written by rank 0
                            rank_0.pt rank_1.pt ...      memories and random states, by every rank
                            run.json vocabulary.json     how to rebuild the model without the run folder
                            manifest.json                checksums: written last
    checkpoints/last, best  links to step folders
    checkpoints/set_aside/  what was saved after the checkpoint that a run went on from, until it is saved again

A folder without the rename is not a checkpoint, and one whose checksums do not hold is passed over, loudly, for the
one before it. Only plain tensors and containers are stored, so loading never runs code.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from txl.errors import ConfigError
from txl.files import sha256_of_file, write_json
from txl.system.distributed import barrier, gather_objects
from txl.system.world import World

log = logging.getLogger(__name__)


MANIFEST = "manifest.json"


class CheckpointError(ConfigError):
    """A checkpoint that is absent, torn, or of something else."""


@dataclass
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path
    world: World
    keep: int = 2
    save_all: bool = False
    _written: int | None = None  # the latest step that this process wrote

    def save(self, step: int, shared: dict, shard: dict, documents: dict[str, dict], best: bool = False) -> Path:
        """Write step_<step> from all ranks. Collective: every rank calls it at the same step.

        shared: file stem -> object, needed from rank 0 only; shard: this rank's own; documents: name -> JSON.
        """
        final, partial = self.folder / f"step_{step}", self.folder / f".step_{step}.partial"
        is_main = self.world.is_main
        if step != self._written:  # what another process left there may be torn
            if is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            barrier()
            files = {f"rank_{self.world.rank}.pt": shard}
            if is_main:
                files |= {f"{stem}.pt": value for stem, value in shared.items()} | documents
            sums = {name: write(partial / name, value) for name, value in files.items()}
            everyone = gather_objects(sums)
            if is_main:
                manifest = {"step": step, "world_size": self.world.world_size}
                manifest["files"] = {name: entry for part in everyone for name, entry in part.items()}
                write(partial / MANIFEST, manifest)
                replaced = set_aside(final)
                commit(partial, final)
                shutil.rmtree(replaced, ignore_errors=True)
            self._written = step
        if is_main:
            point(self.folder / "last", final)
            if best:
                point(self.folder / "best", final)
            self._prune()
        barrier()
        return final

    def steps(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        found = [path for path in self.folder.glob("step_*") if (path / MANIFEST).exists()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; every torn one is named."""
        for path in self.steps():
            try:
                verify(path)
                return path
            except CheckpointError as error:
                log.warning("%s; trying the checkpoint before it", error)
        return None

    def rewind(self, step: int, best_step: int) -> bool:
        """Before a run goes on from `step`: is its best checkpoint here, and whole?

        What was saved later is torn, or of a run that is not continued: it is set aside. Links name what is left.
        """
        best, found = self.folder / f"step_{best_step}", False
        if self.world.is_main and self.folder.exists():
            for path in self.folder.glob("step_*"):
                if int(path.name.removeprefix("step_")) > step:
                    log.warning("%s was saved after step %d, from which this run goes on: set aside", path, step)
                    set_aside(path)
            found = is_whole(best)
            last = self.folder / f"step_{step}"
            for link, target, there in (("last", last, last.exists()), ("best", best, found)):
                if there:
                    point(self.folder / link, target)
                else:
                    (self.folder / link).unlink(missing_ok=True)
        return gather_objects(found)[0]

    def _prune(self) -> None:
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


def set_aside(folder: Path) -> Path:
    """Move a step folder, if it is there, to set_aside/ beside it; returns where it then is."""
    aside = folder.parent / "set_aside" / folder.name
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        os.rename(folder, aside)
    return aside


def is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True


def write(path: Path, value) -> dict:
    """Write a .pt or .json file through to the disk; returns its size and checksum."""
    if path.suffix == ".json":
        write_json(path, value, indent=1, keep_non_finite=True)  # no validation yet: the best loss is infinite
    else:
        with open(path, "wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def commit(partial: Path, final: Path) -> None:
    """The one instant at which a checkpoint comes into being."""
    sync_folder(partial)
    os.rename(partial, final)
    sync_folder(final.parent)


def point(link: Path, target: Path) -> None:
    """Let a link name another folder beside it, in one instant."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.name)
    os.replace(fresh, link)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resolve(path: str | Path, key: str = "checkpoint") -> Path:
    """A run folder, its checkpoints folder, or a checkpoint -> the checkpoint folder. `key`: the option that named it.

    Of a run's, the best one speaks for it, and with key="resume" the last one is where it goes on.
    """
    path = Path(path)
    links = ("last", "best") if key == "resume" else ("best", "last")
    for choice in (path, *(path / folder / link for link in links for folder in ("", "checkpoints"))):
        if (choice / MANIFEST).exists():
            return choice.resolve()
    if not path.exists():
        raise CheckpointError(f"{key}={path} does not exist; name a run folder or one of its checkpoints")
    foreign = path.is_file() or (path / "pytorch_model.bin").exists()
    remedy = f"; is it another implementation's? python -m txl.checkpoint import {path} FOLDER" if foreign else ""
    unfinished = f"not a checkpoint, or one that was never finished{remedy}"
    raise CheckpointError(f"{key}={path} holds no {MANIFEST}: {unfinished}")


def verify(folder: Path) -> dict:
    """The manifest, once every file is there with the size and checksum it names."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {folder}: unreadable {MANIFEST} ({error})") from None
    for name, expected in files.items():
        path = folder / name
        if not path.exists():
            raise CheckpointError(f"checkpoint {folder} is torn: {name} is missing")
        if path.stat().st_size != expected["bytes"] or sha256_of_file(path) != expected["sha256"]:
            raise CheckpointError(f"checkpoint {folder} is torn: {name} is not what its manifest says")
    return manifest


def read(folder: Path, name: str, device: str | torch.device = "cpu"):
    """One file of a checkpoint: tensors and plain containers (never code), or a JSON document."""
    path = folder / name
    if not path.exists():
        raise CheckpointError(f"checkpoint {folder} has no {name}")
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return torch.load(path, map_location=device, weights_only=True)


def read_columns(folder: Path, columns: range) -> torch.Tensor | None:
    """Memories of these columns of the global batch, from whichever ranks' shards hold them: [L, B, M, D].

    Of the other shards only the heads are read.
    """
    world_size = read(folder, MANIFEST)["world_size"]
    parts = []
    for rank in range(world_size):
        shard = torch.load(folder / f"rank_{rank}.pt", "cpu", weights_only=True, mmap=True)
        begin, end = shard["columns"]
        if shard["mems"] is None:
            return None
        low, high = max(begin, columns.start), min(end, columns.stop)
        if low < high:
            parts.append(shard["mems"][:, low - begin : high - begin])
    return torch.cat(parts, dim=1)
