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

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from txl.choices import Metric, VocabKind
from txl.composition import from_dict, to_dict
from txl.config import DataConfig, EvaluationConfig, ModelConfig, longest_context
from txl.convert import LENGTHS, Foreign, read_hugging_face, read_reference, to_reference, write_reference
from txl.distributed import World, barrier, gather_objects
from txl.errors import ConfigError
from txl.model import TransformerXL
from txl.unpickle import load_checkpoint
from txl.vocab import WordVocabulary, vocabulary_from_dict

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
    with open(path, "wb") as file:
        if path.suffix == ".json":
            file.write((json.dumps(value, indent=1) + "\n").encode())
        else:
            torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def checksum(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        if path.stat().st_size != expected["bytes"] or checksum(path) != expected["sha256"]:
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


def load_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Weights by name; CheckpointError that names the first tensor which does not fit."""
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise CheckpointError(f"{origin} holds another architecture: it has no {name}")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, this model needs {tuple(tensor.shape)}"
            raise CheckpointError(f"{origin} holds another architecture or vocabulary: {name} is {shapes}")
    for name in state.keys() - expected.keys():
        raise CheckpointError(f"{origin} holds another architecture: {name} is not part of this model")
    model.load_state_dict(state)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .pt or .safetensors file, or of a checkpoint folder."""
    if not path.exists():
        raise CheckpointError(f"checkpoint={path} does not exist; name a file of weights, or a checkpoint")
    if path.is_dir():
        return read(path, "model.pt")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = load_checkpoint(path)
    if isinstance(state, dict) and "model_state" in state:
        raise CheckpointError(f"{path} is the reference's; first: python -m txl.checkpoint import {path} FOLDER")
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no weights: expected tensors by name")
    return state


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


# --------------------------------------------------------------------------- from elsewhere, and back


def import_model(source: Path, target: Path) -> list[str]:
    """A foreign checkpoint -> a checkpoint folder; returns a report. Raises ConfigError for what cannot be read.

    source: the reference's checkpoint_best.pt, or a folder that Hugging Face's TransfoXLLMHeadModel was saved to.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists already; name another folder")
    foreign = _read_hugging_face(source) if source.is_dir() else _read_reference(source)
    words = foreign.words
    if words is None:
        words = [f"token{i}" for i in range(foreign.vocab_size)]
        foreign.report.append("no vocabulary: tokens are named token0, token1, ...")
    if len(words) != foreign.vocab_size:
        raise CheckpointError(f"{source}: {len(words)} words in its vocabulary, {foreign.vocab_size} in its model")
    vocab = WordVocabulary(words, foreign.lower_case)
    data = DataConfig(
        name=foreign.dataset,
        path=os.path.join(os.environ.get("TXL_DATA", "data"), foreign.dataset),
        split=[0.9, 0.05, 0.05],
        vocab=VocabKind.word,
        lower_case=foreign.lower_case,
        min_freq=0,
        cutoffs=foreign.cutoffs,
        metric=Metric.ppl,
        cache=os.environ.get("TXL_CACHE", "data/cache"),
    )
    lengths = to_dict(foreign.lengths)
    run = {"model": to_dict(foreign.model), "data": to_dict(data), "train": lengths, "evaluation": lengths}
    built = TransformerXL(foreign.model, len(words), foreign.cutoffs, longest_context(lengths))
    load_weights(built, foreign.state, str(source))
    documents = {"run.json": run | {"imported_from": str(source)}, "vocabulary.json": vocab.to_dict()}
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {name: write(partial / name, value) for name, value in ({"model.pt": foreign.state} | documents).items()}
    write(partial / MANIFEST, {"step": 0, "world_size": 0, "files": files})
    commit(partial, target)
    model = foreign.model
    shape = f"{model.n_layer} layers, d_model {model.d_model}, n_head {model.n_head}, d_head {model.d_head}"
    size = f"{sum(p.numel() for p in built.parameters()):,} parameters, vocabulary {len(words):,}"
    return [*foreign.report, f"{shape}, d_inner {model.d_inner}, div_val {model.div_val}: {size}", f"written: {target}"]


def _read_reference(source: Path):
    checkpoint = load_checkpoint(source)
    if not isinstance(checkpoint, dict) or not {"model_config", "model_state"} <= set(checkpoint):
        raise CheckpointError(f"{source} holds no model_config and model_state: not a checkpoint of the reference")
    try:
        return read_reference(checkpoint)
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        raise CheckpointError(f"{source}: incomplete ({type(error).__name__}: {error})") from None


def _read_hugging_face(source: Path):
    weights = [source / name for name in ("pytorch_model.bin", "model.safetensors") if (source / name).exists()]
    if not weights or not (source / "config.json").exists():
        raise CheckpointError(f"{source} lacks config.json or pytorch_model.bin: not a folder of Hugging Face's")
    if weights[0].suffix == ".bin":
        state = load_checkpoint(weights[0])
    else:
        from safetensors.torch import load_file

        state = load_file(weights[0])
    words, lower_case = None, False
    if (source / "vocab.pkl").exists():
        values = load_checkpoint(source / "vocab.pkl")
        values = values if isinstance(values, dict) else vars(values)
        words, lower_case = list(values["idx2sym"]), bool(values.get("lower_case", False))
    try:
        return read_hugging_face(json.loads((source / "config.json").read_text()), state, words, lower_case)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source}: no TransfoXLLMHeadModel ({type(error).__name__}: {error})") from None


def export_model(source: Path, target: Path, form: str) -> list[str]:
    """A checkpoint -> the reference's layout (one .pt file), or safetensors with JSON beside it (a folder)."""
    if target.exists():
        raise CheckpointError(f"{target} exists already; name another one")
    folder = resolve(source)
    verify(folder)
    run, vocabulary, state = (read(folder, name) for name in ("run.json", "vocabulary.json", "model.pt"))
    if form == "safetensors":
        from safetensors.torch import save_file

        target.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, target / "model.safetensors")
        write(target / "config.json", {key: run[key] for key in ("model", "data", "train", "evaluation")})
        write(target / "vocabulary.json", vocabulary)
        return [f"{len(state)} tensors", f"written: {target}"]
    vocab = vocabulary_from_dict(vocabulary)
    foreign = Foreign(
        model=from_dict(run["model"], ModelConfig),
        state=state,
        vocab_size=len(vocab),
        cutoffs=run["data"]["cutoffs"],
        lengths=EvaluationConfig(**{key: run["train"][key] for key in LENGTHS}, batch_size=16),
        words=list(vocab.words) if isinstance(vocab, WordVocabulary) else None,
        lower_case=run["data"]["lower_case"],
        dataset=run["data"]["name"],
        report=[],
    )
    torch.save(write_reference(foreign), target)
    theirs = len(to_reference(state, foreign.model))
    report = [f"{len(state)} tensors of ours, {theirs} of the reference's", f"written: {target}"]
    if foreign.words is None:
        report.insert(1, f"its {vocab.kind} vocabulary has no place there: only the weights went along")
    return report


def main(arguments: list[str] | None = None) -> int:
    """`python -m txl.checkpoint import SOURCE FOLDER`, `... export CHECKPOINT TARGET`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m txl.checkpoint", description="Models from elsewhere, and back.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("import", help="a checkpoint of the reference (.pt) or of Hugging Face (folder)")
    two = commands.add_parser("export", help="to the reference's layout, or safetensors and JSON")
    for command in (one, two):
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path)
    two.add_argument("--format", choices=["reference", "safetensors"], default="reference")
    given = parser.parse_args(arguments)
    try:
        if given.command == "import":
            report = import_model(given.source, given.target)
        else:
            report = export_model(given.source, given.target, given.format)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
