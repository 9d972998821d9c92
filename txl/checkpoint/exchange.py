"""Models of other implementations: import them as checkpoints, export checkpoints to them."""

import json
import os
import shutil
from pathlib import Path

import torch

from txl.checkpoint.hugging_face import read_hugging_face
from txl.checkpoint.reference_format import LENGTHS, Foreign, read_reference, to_reference, write_reference
from txl.checkpoint.safe_unpickle import load_checkpoint
from txl.checkpoint.store import MANIFEST, CheckpointError, commit, read, resolve, verify, write
from txl.checkpoint.weights import load_weights
from txl.config.compose import from_dict, to_dict
from txl.config.data import DataConfig, Metric, VocabKind
from txl.config.model import ModelConfig
from txl.config.training import EvaluationConfig, longest_context
from txl.data.vocabulary import vocabulary_from_dict
from txl.data.word_vocabulary import WordVocabulary
from txl.model.transformer import TransformerXL

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
        words=[str(token) for token in vocab.tokens] if vocab.kind == VocabKind.word.name else None,
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
