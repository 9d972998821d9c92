"""Convert models of other programs to checkpoints (import), and checkpoints to their formats (export)."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from txl.checkpoint.checkpoint_files import (
    broken_content_reported,
    damage_reported,
    publish_checkpoint,
    read_model_checkpoint,
    write_checkpoint_file,
)
from txl.checkpoint.find import MANIFEST, CheckpointError, read_document
from txl.checkpoint.hugging_face import read_hugging_face
from txl.checkpoint.pickle_functions import Record, shown_text
from txl.checkpoint.pickled_module import read_module, read_weights_alone
from txl.checkpoint.reference_format import (
    LENGTHS,
    ExternalModel,
    check_sizes,
    read_reference,
    reference_checkpoint,
    to_reference,
)
from txl.checkpoint.torch_file import load_torch_file
from txl.checkpoint.weights import check_weights, read_safetensors
from txl.config.compose import from_dict, to_dict
from txl.config.data import DataConfig, Metric, VocabKind
from txl.config.model import ModelConfig
from txl.config.model_rules import check_architecture
from txl.config.output_files import check_output_file, check_output_folder, writing_output
from txl.config.training import EvaluationConfig, longest_context
from txl.data.vocabulary import vocabulary_from_dict
from txl.data.word_vocabulary import WordVocabulary
from txl.errors import ConfigError
from txl.files import read_text_file
from txl.model.transformer import TransformerXL

# --------------------------------------------------------------------------- import


def import_model(source: Path, target: Path) -> list[str]:
    """Convert another program's model to a checkpoint folder.

    Args:
        source: the reference's checkpoint_best.pt; a whole model or its weights, as torch.save writes them; a folder
            that Hugging Face's TransfoXLLMHeadModel was saved to; or a folder that `export_model` wrote.
        target: the checkpoint folder to write; it must not exist.

    Returns:
        Lines that say what was read and how it was converted.

    Raises:
        ConfigError: the source cannot be read, or the target exists.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists already; name another folder")
    check_output_folder("TARGET", target)
    if (source / "vocabulary.json").is_file() and (source / "model.safetensors").is_file():
        _write_checkpoint(target, _read_own_export(source))
        return ["this project's own export", f"written: {target}"]
    with _source_named(source):
        external = _read_hugging_face_folder(source) if source.is_dir() else _read_reference_file(source)
    words = external.words
    if words is None:
        words = [f"token{i}" for i in range(external.vocab_size)]
        external.report.append("no vocabulary: tokens are named token0, token1, ...")
    if len(words) != external.vocab_size:
        raise CheckpointError(f"{source}: {len(words)} words in its vocabulary, {external.vocab_size} in its model")
    if not all(isinstance(word, str) for word in words):
        raise CheckpointError(f"{source}: its vocabulary holds something that is no word")
    with _source_named(source):
        vocab = WordVocabulary(words, external.lower_case)
        run = _description(external)
        check_architecture(external.model, from_dict(run["data"], DataConfig))
        with torch.device("meta"):  # shapes without memory
            built = TransformerXL(external.model, len(words), external.cutoffs, longest_context(run["train"]))
        check_weights(built, external.state, str(source))
    _write_checkpoint(
        target,
        {
            "model.pt": external.state,
            "run.json": run | {"imported_from": str(source)},
            "vocabulary.json": vocab.to_dict(),
        },
    )
    model = external.model
    shape = f"{model.n_layer} layers, d_model {model.d_model}, n_head {model.n_head}, d_head {model.d_head}"
    size = f"{sum(p.numel() for p in built.parameters()):,} parameters, vocabulary {len(words):,}"
    line = f"{shape}, d_inner {model.d_inner}, div_val {model.div_val}: {size}"
    return [*external.report, line, f"written: {target}"]


def _description(external: ExternalModel) -> dict[str, Any]:
    """The content of run.json: the settings of an imported model."""
    data = DataConfig(
        name=external.dataset,
        path=os.path.join(os.environ.get("TXL_DATA", "data"), external.dataset),
        split=[0.9, 0.05, 0.05],
        vocab=VocabKind.word,
        lower_case=external.lower_case,
        min_freq=0,
        cutoffs=external.cutoffs,
        metric=Metric.ppl,
        cache=os.environ.get("TXL_CACHE", "data/cache"),
    )
    lengths = to_dict(external.lengths)
    return {"model": to_dict(external.model), "data": to_dict(data), "train": lengths, "evaluation": lengths}


def _write_checkpoint(target: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint of no training run: file name -> content."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {name: write_checkpoint_file(partial / name, value) for name, value in contents.items()}
    write_checkpoint_file(partial / MANIFEST, {"step": 0, "world_size": 0, "files": files})
    publish_checkpoint(partial, target)


@contextlib.contextmanager
def _source_named(source: Path) -> Iterator[None]:
    """What goes wrong inside becomes an error of one line that names the source."""
    try:
        with broken_content_reported(lambda reason: f"{source}: no model that can be converted, or damaged ({reason})"):
            yield
    except CheckpointError:
        raise
    except ConfigError as error:
        raise CheckpointError(str(error) if str(source) in str(error) else f"{source}: {error}") from None


def _read_reference_file(source: Path) -> ExternalModel:
    checkpoint, note = load_torch_file(source), None
    if isinstance(checkpoint, Record):
        checkpoint, note = read_module(checkpoint), "a whole module: its settings are those of its attributes"
    elif isinstance(checkpoint, dict) and checkpoint and all(isinstance(v, Tensor) for v in checkpoint.values()):
        checkpoint = read_weights_alone(checkpoint)
        note = "weights without settings: what their shapes do not say is assumed (pre_lnorm false, lengths of 128)"
    if not isinstance(checkpoint, dict) or not {"model_config", "model_state"} <= set(checkpoint):
        raise CheckpointError(f"{source} holds no model_config and model_state: not a checkpoint of the reference")
    external = read_reference(checkpoint)
    external.report += [note] if note else []
    return external


def _read_own_export(source: Path) -> dict[str, Any]:
    """The content of a checkpoint, from a folder that `txl export --format safetensors` wrote."""
    described, vocabulary = read_document(source, "config.json"), read_document(source, "vocabulary.json")
    with damage_reported(source):
        model, lengths = from_dict(described["model"], ModelConfig), longest_context(described["train"])
        vocab = vocabulary_from_dict(vocabulary)
        check_architecture(model, from_dict(described["data"], DataConfig))
        state = read_safetensors(source / "model.safetensors")
        with torch.device("meta"):  # shapes without memory
            check_sizes(model, len(vocab), state)
            check_weights(TransformerXL(model, len(vocab), described["data"]["cutoffs"], lengths), state, str(source))
    return {"model.pt": state, "run.json": described, "vocabulary.json": vocabulary}


def _read_hugging_face_folder(source: Path) -> ExternalModel:
    weights = [source / name for name in ("pytorch_model.bin", "model.safetensors") if (source / name).exists()]
    if not weights or not (source / "config.json").exists():
        raise CheckpointError(f"{source} lacks config.json or pytorch_model.bin: not a model folder of Hugging Face")
    state = load_torch_file(weights[0]) if weights[0].suffix == ".bin" else read_safetensors(weights[0])
    config = json.loads(read_text_file(source / "config.json"))
    words, lower_case, report = None, None, list[str]()
    if (source / "vocab.pkl").exists():
        tokenizer = load_torch_file(source / "vocab.pkl")
        tokenizer = tokenizer if isinstance(tokenizer, dict) else vars(tokenizer)
        words, lower_case = _words_for_all_rows(tokenizer, config["vocab_size"], report), tokenizer.get("lower_case")
    external = read_hugging_face(config, state, words, bool(lower_case))
    external.report += report
    return external


def _words_for_all_rows(tokenizer: dict[str, Any], vocab_size: int, report: list[str]) -> list[str]:
    """The words of a tokenizer of transformers, one for every row of the model.

    transformers counts tokens that were added to the tokenizer, although no text becomes their ids.
    """
    words = list(tokenizer["idx2sym"])
    added = tokenizer.get("_added_tokens_decoder") or {}
    names = [vars(token)["content"] for token in added.values()] if isinstance(added, dict) else []
    more = [name for name in names if name not in words][: max(0, vocab_size - len(words))]
    if more:
        report.append(f"  added tokens that no text becomes: {', '.join(map(shown_text, more))}")
    return words + more


# --------------------------------------------------------------------------- export


def export_model(source: Path, target: Path, form: str) -> list[str]:
    """Convert a checkpoint to another format.

    Args:
        source: a checkpoint, or a run folder.
        target: the .pt file (reference) or the folder (safetensors) to write; it must not exist.
        form: "reference": one .pt file in the reference's layout; "safetensors": model.safetensors with JSON beside it.

    Returns:
        Lines that say what was written.

    Raises:
        CheckpointError: the source is no intact checkpoint, or the target exists.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists already; name another one")
    if form == "safetensors":
        check_output_folder("TARGET", target)
    else:
        check_output_file("TARGET", target)
    checkpoint = read_model_checkpoint(source)
    run, vocab, state = checkpoint.run, checkpoint.vocab, checkpoint.weights
    if form == "safetensors":
        from safetensors.torch import save_file

        target.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, target / "model.safetensors")
        described = {key: run[key] for key in ("model", "data", "train", "evaluation")}
        write_checkpoint_file(target / "config.json", described)
        shutil.copymode(target / "config.json", target / "model.safetensors")  # safetensors hides its file from others
        write_checkpoint_file(target / "vocabulary.json", vocab.to_dict())
        return [f"{len(state)} tensors", f"written: {target}"]
    external = ExternalModel(
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
    with writing_output("TARGET", target):
        torch.save(reference_checkpoint(external), target)
    count = len(to_reference(state, external.model))
    report = [f"{len(state)} tensors here, {count} in the reference's format", f"written: {target}"]
    if external.words is None:
        report.insert(1, f"the reference's format cannot hold a {vocab.kind} vocabulary: only weights were written")
    return report
