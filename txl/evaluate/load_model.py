"""The model of a checkpoint, and the runtime it is evaluated in."""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from txl.checkpoint.checkpoint_files import read_checkpoint_file, verify_checkpoint
from txl.checkpoint.resolve import resolve_checkpoint
from txl.checkpoint.weights import load_weights, read_weights
from txl.config.compose import from_dict
from txl.config.data import DataConfig
from txl.config.geometry import Geometry
from txl.config.model import ModelConfig
from txl.config.model_rules import check_architecture, check_clamp
from txl.config.schema import EvaluateConfig, Runtime
from txl.config.training import EvaluationConfig, longest_context
from txl.data.corpus import open_corpus
from txl.data.vocabulary import Vocabulary, vocabulary_from_dict
from txl.errors import ConfigError
from txl.evaluate.exported_program import CachedStep, FixedShapeProgram, make_program
from txl.evaluate.kv_cache import CachedTransformerXL, GraphedTransformerXL
from txl.model.transformer import TransformerXL

# What one must know of a run to use its weights; of its training, the lengths.
DESCRIBED = {"model": ModelConfig, "data": DataConfig, "train": EvaluationConfig, "evaluation": EvaluationConfig}


@dataclass
class Loaded:
    """A model as a checkpoint holds it, and what its run recorded beside it."""

    model: TransformerXL
    architecture: ModelConfig
    vocab: Vocabulary
    data: DataConfig
    evaluation: EvaluationConfig
    folder: Path


def load(
    checkpoint: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    config_file: str | None = None,
    data_path: str | None = None,
) -> Loaded:
    """Raises CheckpointError for a folder that is no checkpoint, is torn, or does not fit its description.

    That is its own, or `config_file` for weights without one; their vocabulary then lies beside them or beside that
    file (vocabulary.json), or is the data set's. `data_path`: where that is, if not where the run had it.
    """
    if config_file is None:
        folder = resolve_checkpoint(checkpoint)
        verify_checkpoint(folder)
        run, state = read_checkpoint_file(folder, "run.json"), read_checkpoint_file(folder, "model.pt")
        vocab = vocabulary_from_dict(read_checkpoint_file(folder, "vocabulary.json"))
    else:
        run, folder = read_description(config_file), Path(checkpoint)
        folder = resolve_checkpoint(folder) if folder.is_dir() else folder
        state, vocab = read_weights(folder), None
        for place in (folder if folder.is_dir() else folder.parent, Path(config_file).parent):
            if vocab is None and (place / "vocabulary.json").exists():
                vocab = vocabulary_from_dict(read_checkpoint_file(place, "vocabulary.json"))
    config, data = from_dict(run["model"], ModelConfig), from_dict(run["data"], DataConfig)
    data.path = data_path or data.path
    vocab = vocab or open_corpus(data).vocab
    model = TransformerXL(config, len(vocab), data.cutoffs, longest_context(run["train"]))
    load_weights(model, state, str(folder))
    model.to(device, dtype).eval()
    return Loaded(model, config, vocab, data, from_dict(run["evaluation"], EvaluationConfig), folder)


def read_description(path: str) -> dict:
    """A run's config.yaml, or what `python train.py ... --cfg job --resolve` prints, or the same as JSON."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config_file={path} cannot be read: {' '.join(str(error).split())}") from None
    lengths = EvaluationConfig.__dataclass_fields__
    typed = {}
    for name, kind in DESCRIBED.items():
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
    return values


def geometry_of(config: EvaluateConfig, loaded: Loaded) -> tuple[Geometry, int]:
    """Lengths and batch size: as given, else as the recipe's evaluation was published."""
    check_clamp("clamp_len", config.clamp_len, loaded.architecture)

    def value(key: str):
        given = getattr(config, key)
        return getattr(loaded.evaluation, key) if given is None else given

    geometry = Geometry(*(value(key) for key in ("tgt_len", "mem_len", "ext_len", "clamp_len", "same_length")))
    if geometry.same_length and geometry.mem_len == 0:
        raise ConfigError("same_length=true needs a memory; set mem_len above 0, or same_length=false")
    return geometry, value("batch_size")


def choose_runtime(runtime: Runtime, model: TransformerXL, geometry: Geometry) -> Runtime:
    """`auto`: the cached runtime wherever it computes the same as the eager one."""
    if runtime is not Runtime.auto:
        return runtime
    return Runtime.cached if model.positions.facts.caches_keys and not geometry.ext_len else Runtime.eager


def in_runtime(model: TransformerXL, runtime: Runtime, geometry: Geometry, batch_size: int, program: str | None = None):
    """The model as `evaluation.evaluate` runs it; programs under the autocast that holds now."""
    if runtime is Runtime.eager:
        return model
    if runtime is Runtime.cached:
        return CachedTransformerXL(model, geometry)
    if runtime is Runtime.graphs:
        if next(model.parameters()).device.type != "cuda":
            raise ConfigError("runtime=graphs needs a GPU; use runtime=cached")
        return GraphedTransformerXL(model, geometry)
    step = CachedStep(model, geometry, runtime.name)
    return FixedShapeProgram(step, make_program(step, runtime, batch_size, program))
