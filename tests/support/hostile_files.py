"""Files that run code, or take endless memory, if they are read carelessly."""

import warnings
from pathlib import Path

import torch


class WritesFileWhenLoaded(torch.nn.Module):
    """A TorchScript module whose __setstate__, which torch.jit.load runs, writes a file."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        written = torch.from_file(self.path, True, 4, dtype=torch.uint8).fill_(88)
        self.training = state[1] or int(written.sum()) > 0  # the result is used, or the compiler would drop the line


def torchscript_that_writes(victim: Path, file: Path) -> Path:
    """A TorchScript archive at `file` that writes XXXX to `victim` when torch.jit.load reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(WritesFileWhenLoaded(str(victim))).save(str(file))
    victim.unlink(missing_ok=True)
    return file
