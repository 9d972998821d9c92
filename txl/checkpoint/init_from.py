"""A run that begins with the weights of another: init_from=CHECKPOINT. Its data set and vocabulary may be others.

Weights alone are taken. Layers, positions and projections come over whole, vectors and biases of words row by row: the
new word's row is that of the same word (byte, character, byte pair). Where clusters have widths of their own
(model.div_val above 1), a word finds its row only if it stands in the cluster of the same number; otherwise one table
holds all words, wherever data.cutoffs are. The clusters' own vectors come over if there are as many of them, and of
learned distances the nearest. All else stays as it was initialised.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from txl.checkpoint import store
from txl.config.compose import to_dict
from txl.config.rules import shown
from txl.config.schema import RunConfig
from txl.data.vocabulary import Vocabulary, vocabulary_from_dict
from txl.model.clusters import VocabularyClusters
from txl.model.transformer import TransformerXL

ARCHITECTURE = """
    n_layer n_head d_model d_head d_inner d_embed positions pre_lnorm untie_r div_val tie_weight tie_projs
"""


BY_WORD = ("embedding.tables.", "softmax.weights.", "softmax.biases.")


BY_DISTANCE = ("positions.table", "positions.distance_key", "positions.distance_bias")  # [layers, distances, ...]


@dataclass(frozen=True)
class Carried:
    """What came over."""

    words: int
    vocab_size: int
    noun: str
    parameters: int
    of_parameters: int

    def __str__(self) -> str:
        return (
            f"init_from: {self.words:,} of {self.vocab_size:,} {self.noun} carried over, "
            f"{self.vocab_size - self.words:,} initialised; "
            f"{self.parameters:,} parameters of {self.of_parameters:,} loaded"
        )


def check_source(config: RunConfig) -> None:
    """CheckpointError where the checkpoint is absent, torn, or of another architecture."""
    folder = store.resolve(config.init_from, "init_from")
    try:
        store.verify(folder)
    except store.CheckpointError as error:
        raise store.CheckpointError(f"init_from={config.init_from}: {error}; name another checkpoint") from None
    run, now = store.read(folder, "run.json"), to_dict(config)
    was = architecture(run["model"]) | {"data.vocab": run["data"]["vocab"]}
    for key, value in (architecture(now["model"]) | {"data.vocab": now["data"]["vocab"]}).items():
        if was.get(key, value) != value:
            raise store.CheckpointError(
                f"init_from={config.init_from} has {key}={shown(was[key])}, this run {shown(value)}: its weights do "
                f"not fit; set {key}={shown(was[key])}, or name another checkpoint"
            )


def architecture(model: dict[str, Any]) -> dict[str, Any]:
    """What the shapes and the meaning of weights depend on, written in one way."""
    values = {f"model.{key}": model[key] for key in ARCHITECTURE.split()}
    values["model.d_embed"] = width = model["d_embed"] or model["d_model"]
    if model["div_val"] == 1 and width == model["d_model"]:
        del values["model.tie_projs"]  # there are no projections
    else:
        tied = list(model["tie_projs"])
        while tied[-2:-1] == tied[-1:]:  # the last entry holds for all further ones
            tied.pop()
        values["model.tie_projs"] = tied
    return values


def begin(model: TransformerXL, vocab: Vocabulary, config: RunConfig) -> Carried:
    """Copy what fits of the checkpoint, which `check_source` has passed, into a model that is initialised."""
    folder = store.resolve(config.init_from, "init_from")
    run, state = store.read(folder, "run.json"), store.read(folder, "model.pt")
    old = vocabulary_from_dict(store.read(folder, "vocabulary.json"))
    cutoffs = run["data"]["cutoffs"] if run["model"]["adaptive"] else []
    return carry_over(model, vocab, state, old, cutoffs)


@torch.no_grad()
def carry_over(
    model: TransformerXL, vocab: Vocabulary, state: dict[str, Tensor], old_vocab: Vocabulary, old_cutoffs: list[int]
) -> Carried:
    """The model's own state dict is written to: tensors stay where optimizers and wrappers know them."""
    own, loaded = model.state_dict(), 0
    rows = rows_by_table(model, vocab, old_vocab, old_cutoffs)
    for name, tensor in own.items():
        source = state.get(name)
        if source is None:  # of a cluster that the checkpoint has not
            continue
        if name.startswith(BY_WORD):
            to, of = rows[int(name.rpartition(".")[2])]
            tensor[to.to(tensor.device)] = source[of].to(tensor)
            loaded += tensor[0].numel() * len(to)
            continue
        if name in BY_DISTANCE:
            nearest = min(tensor.shape[1], source.shape[1])
            tensor, source = tensor[:, -nearest:], source[:, -nearest:]
        elif tensor.shape != source.shape:
            assert name.startswith("softmax.cluster_"), f"{name}: {tensor.shape} and {source.shape}"
            continue
        tensor.copy_(source)
        loaded += tensor.numel()
    words = sum(len(to) for to, _ in rows)
    noun, total = vocab.noun, sum(tensor.numel() for tensor in own.values())
    return Carried(words, len(vocab), noun, loaded, total)


def rows_by_table(
    model: TransformerXL, vocab: Vocabulary, old_vocab: Vocabulary, old_cutoffs: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """For every table of the model: its rows, and the rows of the same words in the checkpoint's table."""
    to, of = shared_ids(vocab, old_vocab)
    tables = len(model.embedding.tables)
    if tables == 1:
        return [(to, of)]
    clusters = model.embedding.clusters
    spans = clusters.spans
    old_spans = VocabularyClusters(len(old_vocab), old_cutoffs, clusters.widths[0], 1).spans
    found = []
    for i, (begin, end) in enumerate(spans):
        old_begin, old_end = old_spans[i] if i < len(old_spans) else (0, 0)
        both = (to >= begin) & (to < end) & (of >= old_begin) & (of < old_end)
        found.append((to[both] - begin, of[both] - old_begin))
    return found


def shared_ids(vocab: Vocabulary, old: Vocabulary) -> tuple[Tensor, Tensor]:
    """[n], [n]: ids of words that both have. A line's end is one whatever it is called, and so is an unknown word."""
    if vocab.to_dict() == old.to_dict():
        every = torch.arange(len(vocab))
        return every, every
    ids = {token: i for i, token in enumerate(old.tokens)}
    shared = {i: ids[token] for i, token in enumerate(vocab.tokens) if token in ids}
    for mine, theirs in ((vocab.eos_id, old.eos_id), (vocab.unk_id, old.unk_id)):
        if mine is not None and theirs is not None:
            shared.setdefault(mine, theirs)
    return torch.tensor(list(shared), dtype=torch.long), torch.tensor(list(shared.values()), dtype=torch.long)
