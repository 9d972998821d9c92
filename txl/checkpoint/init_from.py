"""init_from=CHECKPOINT: a run begins with the weights of another run, whose data set and vocabulary may differ.

Only weights are taken over. Layers, positions and projections are copied whole. Word vectors and word biases are copied
row by row: the row of a word (byte, character, byte pair) comes from the same word's row in the checkpoint. If clusters
have widths of their own (model.div_val above 1), this works only for words that are in the cluster of the same number;
otherwise one table holds all words, and data.cutoffs do not matter. The clusters' own vectors are copied if the number
of clusters is the same. Of learned distances the nearest are copied. All other weights stay as they were initialised.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from txl.checkpoint.checkpoint_files import damage_reported, read_model_checkpoint, use_checkpoint
from txl.checkpoint.find import CheckpointError, read_document
from txl.config.compose import from_dict, to_dict
from txl.config.model import ModelConfig
from txl.config.schema import RunConfig
from txl.data.vocabulary import Vocabulary
from txl.errors import shown
from txl.model.clusters import VocabularyClusters
from txl.model.transformer import TransformerXL

ARCHITECTURE = """
    n_layer n_head d_model d_head d_inner d_embed positions pre_lnorm activation value_residual untie_r div_val
    tie_weight tie_projs
"""


BY_WORD = ("embedding.tables.", "softmax.weights.", "softmax.biases.")  # one row per word


BY_DISTANCE = ("positions.table", "positions.distance_key", "positions.distance_bias")  # [layers, distances, ...]


@dataclass(frozen=True)
class InitFromReport:
    """How much of a model was taken over from the checkpoint; `str` makes the line for the user."""

    words: int  # words whose rows were copied
    vocab_size: int
    noun: str  # what the vocabulary's entries are called
    loaded_parameters: int
    all_parameters: int

    def __str__(self) -> str:
        return (
            f"init_from: {self.words:,} of {self.vocab_size:,} {self.noun} carried over, "
            f"{self.vocab_size - self.words:,} initialised; "
            f"{self.loaded_parameters:,} parameters of {self.all_parameters:,} loaded"
        )


# --------------------------------------------------------------------------- before the run


def check_init_from_source(config: RunConfig) -> None:
    """Raises CheckpointError if config.init_from names no intact checkpoint, or one of another architecture."""
    now = to_dict(config)
    there = use_checkpoint(config.init_from or "", "init_from", _read_architecture)
    for key, value in (_architecture(now["model"]) | {"data.vocab": now["data"]["vocab"]}).items():
        if there.get(key, value) != value:
            raise CheckpointError(
                f"init_from={config.init_from} has {key}={shown(there[key])}, this run {shown(value)}: its weights do "
                f"not fit; set {key}={shown(there[key])}, or name another checkpoint"
            )


def _read_architecture(folder: Path) -> dict[str, Any]:
    run = read_document(folder, "run.json")
    with damage_reported(folder):
        model = to_dict(from_dict(run["model"], ModelConfig))  # with the options that came after this run
        return _architecture(model) | {"data.vocab": run["data"]["vocab"]}


def _architecture(model: dict[str, Any]) -> dict[str, Any]:
    """The options that decide the shapes and the meaning of weights; equal architectures give equal dicts."""
    values = {f"model.{key}": model[key] for key in ARCHITECTURE.split()}
    values["model.d_embed"] = width = model["d_embed"] or model["d_model"]
    if model["div_val"] == 1 and width == model["d_model"]:
        del values["model.tie_projs"]  # such a model has no projections
    else:
        tied = list(model["tie_projs"])
        while tied[-2:-1] == tied[-1:]:  # the last entry holds for all further clusters
            tied.pop()
        values["model.tie_projs"] = tied
    return values


# --------------------------------------------------------------------------- in the run


def initialize_from_checkpoint(model: TransformerXL, vocab: Vocabulary, config: RunConfig) -> InitFromReport:
    """Copy what fits from the checkpoint that `check_init_from_source` accepted into a fresh model."""
    source = read_model_checkpoint(config.init_from or "", "init_from")
    with damage_reported(source.folder):
        cutoffs = source.run["data"]["cutoffs"] if source.run["model"]["adaptive"] else []
        return copy_weights_that_fit(model, vocab, source.weights, source.vocab, cutoffs)


@torch.no_grad()
def copy_weights_that_fit(
    model: TransformerXL, vocab: Vocabulary, state: dict[str, Tensor], old_vocab: Vocabulary, old_cutoffs: list[int]
) -> InitFromReport:
    """Copy weights into a model in place, so that optimizers and wrappers keep their tensors.

    Args:
        model: the model that the run begins with, initialised.
        vocab: its vocabulary.
        state: the checkpoint's weights by name.
        old_vocab: the checkpoint's vocabulary.
        old_cutoffs: the checkpoint's cluster boundaries; empty if it has one softmax.
    """
    own, loaded = model.state_dict(), 0
    rows = _rows_by_table(model, vocab, old_vocab, old_cutoffs)
    for name, tensor in own.items():
        source = state.get(name)
        if source is None:  # belongs to a cluster that the checkpoint does not have
            continue
        if name.startswith(BY_WORD):
            here, there = rows[int(name.rpartition(".")[2])]
            tensor[here.to(tensor.device)] = source[there].to(tensor)
            loaded += tensor[0].numel() * len(here)
            continue
        if name in BY_DISTANCE:
            nearest = min(tensor.shape[1], source.shape[1])
            tensor, source = tensor[:, -nearest:], source[:, -nearest:]
        elif tensor.shape != source.shape:
            assert name.startswith("softmax.cluster_"), f"{name}: {tensor.shape} and {source.shape}"
            continue
        tensor.copy_(source)
        loaded += tensor.numel()
    words = sum(len(here) for here, _ in rows)
    noun, total = vocab.noun, sum(tensor.numel() for tensor in own.values())
    return InitFromReport(words, len(vocab), noun, loaded, total)


def _rows_by_table(
    model: TransformerXL, vocab: Vocabulary, old_vocab: Vocabulary, old_cutoffs: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """For every table of the model: its rows, and the same words' rows in the checkpoint's table."""
    here, there = shared_ids(vocab, old_vocab)
    tables = len(model.embedding.tables)
    if tables == 1:
        return [(here, there)]
    clusters = model.embedding.clusters
    spans = clusters.spans
    old_spans = VocabularyClusters(len(old_vocab), old_cutoffs, clusters.widths[0], 1).spans
    found = []
    for i, (begin, end) in enumerate(spans):
        old_begin, old_end = old_spans[i] if i < len(old_spans) else (0, 0)
        both = (here >= begin) & (here < end) & (there >= old_begin) & (there < old_end)
        found.append((here[both] - begin, there[both] - old_begin))
    return found


def shared_ids(vocab: Vocabulary, old: Vocabulary) -> tuple[Tensor, Tensor]:
    """The ids of the words that both vocabularies have: [n] in `vocab`, [n] in `old`.

    The ends of line match even if they have different names, and so do the unknown words.
    """
    if vocab.to_dict() == old.to_dict():
        every = torch.arange(len(vocab))
        return every, every
    ids = {token: i for i, token in enumerate(old.tokens)}
    shared = {i: ids[token] for i, token in enumerate(vocab.tokens) if token in ids}
    for here, there in ((vocab.eos_id, old.eos_id), (vocab.unk_id, old.unk_id)):
        if here is not None and there is not None:
            shared.setdefault(here, there)
    return torch.tensor(list(shared), dtype=torch.long), torch.tensor(list(shared.values()), dtype=torch.long)
