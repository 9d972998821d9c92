"""The model of a checkpoint, its vocabulary, and the lengths to evaluate it with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from txl.checkpoint.checkpoint_files import damage_reported, read_checkpoint_file, read_model_checkpoint
from txl.checkpoint.find import CheckpointError
from txl.checkpoint.resolve import resolve_checkpoint
from txl.checkpoint.weights import load_weights, read_weights
from txl.config.compose import from_dict
from txl.config.data import DataConfig
from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.config.model_rules import check_architecture, check_clamp
from txl.config.training import EvaluationConfig, longest_context
from txl.config.yaml_file import read_yaml
from txl.data.corpus import open_corpus
from txl.data.vocabulary import Vocabulary, vocabulary_from_dict
from txl.errors import ConfigError, shortened
from txl.model.transformer import TransformerXL

# Sections of a configuration that are needed to use the weights of a run; of `train` only the lengths.
SECTIONS = {"model": ModelConfig, "data": DataConfig, "train": EvaluationConfig, "evaluation": EvaluationConfig}

EXPORTED_WEIGHTS, EXPORTED_CONFIG, EXPORTED_VOCABULARY = "model.safetensors", "config.json", "vocabulary.json"


@dataclass
class LoadedModel:
    """The model of a checkpoint, and what its run recorded beside it."""

    model: TransformerXL
    architecture: ModelConfig
    vocab: Vocabulary
    data: DataConfig
    evaluation: EvaluationConfig  # lengths and batch size of the recipe's evaluation
    folder: Path  # the checkpoint, or the file that held the weights
    data_fingerprint: str | None = None  # of the data set that it was trained on; None: unknown


def load_trained_model(
    checkpoint: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    config_file: str | None = None,
    data_path: str | None = None,
) -> LoadedModel:
    """Load a model to evaluate it.

    Args:
        checkpoint: a run folder, one of its checkpoints, a folder that was exported as safetensors, or weights that
            `config_file` describes.
        device: where the model goes.
        dtype: of its parameters.
        config_file: the configuration of a run, for weights without one. Their vocabulary is then read from
            vocabulary.json beside the weights or beside this file; without either it is built from the data set.
        data_path: folder of the data set, if it was moved.

    Returns:
        The model in evaluation mode, and what belongs to it.

    Raises:
        CheckpointError: if the folder is no checkpoint, is torn, or does not fit its description.
    """
    if config_file is None and is_exported(Path(checkpoint)):
        checkpoint, config_file = f"{checkpoint}/{EXPORTED_WEIGHTS}", f"{checkpoint}/{EXPORTED_CONFIG}"
    fingerprint = None
    if config_file is None:
        found = read_model_checkpoint(checkpoint)
        run, folder, state, vocab = found.run, found.folder, found.weights, found.vocab
        fingerprint = found.data_fingerprint
    else:
        run, folder = read_model_description(config_file), Path(checkpoint)
        folder = resolve_checkpoint(folder) if folder.is_dir() else folder
        state, vocab = read_weights(folder), None
        for place in (folder if folder.is_dir() else folder.parent, Path(config_file).parent):
            if vocab is None and (place / "vocabulary.json").exists():
                with damage_reported(place):
                    vocab = vocabulary_from_dict(read_checkpoint_file(place, "vocabulary.json"))
    try:
        config, data = from_dict(run["model"], ModelConfig), from_dict(run["data"], DataConfig)
        check_architecture(config, data)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint={folder} has an unusable run.json: {error}") from None
    data.path = data_path or data.path
    vocab = vocab or open_corpus(data, splits=()).vocab
    vocab.typed_text = data.typed_text
    model = TransformerXL(config, len(vocab), data.cutoffs, longest_context(run["train"]))
    load_weights(model, state, str(folder))
    model.to(device, dtype).eval()
    evaluation = from_dict(run["evaluation"], EvaluationConfig)
    return LoadedModel(model, config, vocab, data, evaluation, folder, fingerprint)


def check_finite_weights(loaded: LoadedModel) -> None:
    """Raises CheckpointError if a weight is NaN or infinite: whatever is computed from it is no number."""
    for name, parameter in loaded.model.named_parameters():
        if not parameter.isfinite().all():
            raise CheckpointError(
                f"checkpoint={loaded.folder} holds weights that are no numbers ({name}): its training diverged; "
                "use an earlier checkpoint"
            )


def is_exported(folder: Path) -> bool:
    """Whether `txl export` wrote this folder as safetensors. Other programs have no vocabulary.json."""
    names = (EXPORTED_WEIGHTS, EXPORTED_CONFIG, EXPORTED_VOCABULARY)
    return all((folder / name).is_file() for name in names)


def read_model_description(path: str) -> dict[str, Any]:
    """The configuration of a run: its config.yaml, or what `txl train ... --cfg job --resolve` prints, or JSON.

    Raises ConfigError if the file lacks a section of SECTIONS or a value breaks a rule.
    """
    try:
        values = read_yaml(Path(path))
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise ConfigError(f"config_file={shortened(path)} cannot be read: {shortened(reason)}") from None
    lengths = EvaluationConfig.__dataclass_fields__
    typed: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        section = values.get(name) if isinstance(values, dict) else None
        if not isinstance(section, dict):
            raise ConfigError(f"config_file={path} has no section {name}; give the configuration of a run")
        if "${" in str(section):
            raise ConfigError(f"config_file={path}: {name} refers to other keys; write it with --cfg job --resolve")
        if name == "train":
            section = {key: value for key, value in section.items() if key in lengths}
        try:
            typed[name] = from_dict(section, kind)
        except ConfigError as error:
            raise ConfigError(f"config_file={path}: {name}.{error}") from None
    check_architecture(typed["model"], typed["data"])
    return dict(values)


class GivenLengths(Protocol):
    """Lengths and batch size that somebody asked for; None: those of the recipe's evaluation."""

    tgt_len: int | None
    mem_len: int | None
    ext_len: int | None
    clamp_len: int | None
    same_length: bool | None
    batch_size: int | None


def evaluation_geometry(given: GivenLengths, loaded: LoadedModel) -> tuple[Geometry, int]:
    """Lengths and batch size: those that were given, and for the others those of the recipe's evaluation.

    Raises ConfigError for lengths that the model cannot be read with.
    """
    check_clamp("clamp_len", given.clamp_len, loaded.architecture)

    def value(key: str) -> Any:
        asked = getattr(given, key)
        return getattr(loaded.evaluation, key) if asked is None else asked

    geometry = Geometry(*(value(key) for key in ("tgt_len", "mem_len", "ext_len", "clamp_len", "same_length")))
    if geometry.same_length and geometry.mem_len == 0:
        raise ConfigError("same_length=true needs a memory; set mem_len above 0, or same_length=false")
    return geometry, value("batch_size")
