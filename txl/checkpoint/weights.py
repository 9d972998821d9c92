"""Weights by name: reading them from a file, loading them into a model."""

from pathlib import Path

import torch

from txl.checkpoint.safe_unpickle import load_checkpoint
from txl.checkpoint.store import CheckpointError, read


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
