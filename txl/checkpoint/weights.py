"""Weights by name: read them from a file, load them into a model."""

from pathlib import Path

import torch
from torch import Tensor

from txl.checkpoint.checkpoint_files import read_checkpoint_file
from txl.checkpoint.find import CheckpointError
from txl.checkpoint.pickle_functions import shown_text
from txl.checkpoint.torch_file import load_torch_file


def load_weights(model: torch.nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load weights by name into a model. Raises CheckpointError if they do not fit (see `check_weights`)."""
    check_weights(model, state, origin)
    model.load_state_dict(state)


def check_weights(model: torch.nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Raises CheckpointError with the first tensor by name that does not fit a model.

    `origin` says in the message where the weights come from.
    """
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise CheckpointError(f"{origin} holds another architecture: it has no {name}")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, this model needs {tuple(tensor.shape)}"
            raise CheckpointError(f"{origin} holds another architecture or vocabulary: {name} is {shapes}")
    for name in state.keys() - expected.keys():
        raise CheckpointError(f"{origin} holds another architecture: {name} is not part of this model")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors by name of a .pt or .safetensors file, or of a checkpoint folder.

    Raises CheckpointError if there are none.
    """
    if not path.exists():
        raise CheckpointError(f"checkpoint={path} does not exist; name a file of weights, or a checkpoint")
    if path.is_dir():
        tensors: dict[str, Tensor] = read_checkpoint_file(path, "model.pt")
        return tensors
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    state = load_torch_file(path)
    if isinstance(state, dict) and "model_state" in state:
        raise CheckpointError(f"{path} has the reference's format; convert it first: txl import {path} FOLDER")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no weights: expected tensors by name")
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. Raises CheckpointError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path} is no file; name a file of weights")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = shown_text(str(error), 100)
        raise CheckpointError(f"{path} is no safetensors file, or damaged: {reason}; use an intact copy") from None
