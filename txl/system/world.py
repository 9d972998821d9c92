"""This process among the others of its run: rank, world size, and its columns of the global batch. Needs no torch."""

import os
from dataclasses import dataclass

from txl.errors import ConfigError

LOOPBACK = "TXL_LOOPBACK"  # environment variable: all ranks are on this machine, and meet at its loopback address


@dataclass(frozen=True)
class World:
    """Which process this is, and how many there are."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the console and the shared files."""
        return self.rank == 0

    @staticmethod
    def from_environment() -> "World":
        """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, as torchrun and our launcher set them.

        Raises:
            ConfigError: If one of them is not a number.
        """
        rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
        return World(rank, size, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size))


def _number(variable: str, default: int) -> int:
    value = os.environ.get(variable)
    if value is None:
        return default
    if not value.isdecimal():
        raise ConfigError(
            f"{variable}={value!r} in the environment is not a number; unset it, or start the ranks with torchrun"
        )
    return int(value)


def columns_of(rank: int, world_size: int, batch_size: int, first: int | None = None) -> range:
    """The columns of the global batch that a rank holds: contiguous, and as even as possible.

    Args:
        rank: Of which process.
        world_size: How many processes there are.
        batch_size: Columns of the global batch.
        first: Columns of rank 0, if that differs; the other ranks share the rest.

    Returns:
        The columns as a range within `range(batch_size)`.
    """
    if first is not None and world_size > 1:
        rest = columns_of(rank - 1, world_size - 1, batch_size - first)
        return range(first + rest.start, first + rest.stop) if rank else range(first)
    return range(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)
