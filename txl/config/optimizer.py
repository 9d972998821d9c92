"""The options of `optimizer=`, and what the rules and the plan must know of each optimizer without importing torch.

To add an optimizer: its name and its facts here, its implementation in a module of txl/optim/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from txl.config.bounds import above_zero, added, below_one, zero_or_more


class OptimizerName(Enum):
    """The choices of `optimizer=`."""

    lamb = "lamb"
    adam = "adam"
    sgd = "sgd"
    adagrad = "adagrad"
    muon = "muon"  # for the matrices of the layers; AdamW for the rest

    @property
    def facts(self) -> OptimizerFacts:
        """What is known of this optimizer without its implementation."""
        return OPTIMIZER_FACTS[self]


@dataclass
class OptimizerConfig:
    """Options of all optimizers. Those with a default belong to some of them: `OptimizerFacts.options` names whose."""

    name: OptimizerName = MISSING  # the optimizer
    lr: float = above_zero()  # learning rate after the warm-up
    weight_decay: float = zero_or_more()  # share of a weight that is added to its gradient; lamb: to its update
    # PATTERN=FACTOR: factors on the learning rate by pattern of the parameters' names, such as embedding.*=0.5.
    # The first pattern that matches counts. A list, because overrides replace lists as a whole and keep their order.
    lr_scale: list[str] = added([])
    betas: list[float] = field(default_factory=list)  # decay of the first and the second moment
    eps: float | None = zero_or_more(None)  # added to the divisor
    momentum: float | None = below_one(None)  # decay of the gradients' average

    def lr_scales(self) -> dict[str, float]:
        """`lr_scale` as factors by pattern. Raises ValueError if an entry is not PATTERN=FACTOR."""
        entries = (entry.rpartition("=") for entry in self.lr_scale)
        return {pattern: float(factor) for pattern, _, factor in entries}


@dataclass(frozen=True)
class OptimizerFacts:
    """What the rules and the plan ask about an optimizer."""

    options: tuple[str, ...]  # fields of OptimizerConfig that it needs; the rules refuse the other ones
    # Numbers that it keeps for a parameter: of a matrix in a layer (True), or of anything else (False).
    states: Callable[[OptimizerConfig, bool], int]
    sparse_refusal: str | None = None  # why it cannot update single rows of a table; None: it can


OPTIMIZER_FACTS = {
    OptimizerName.lamb: OptimizerFacts(("betas", "eps"), lambda *_: 2, "measures whole tables"),
    OptimizerName.adam: OptimizerFacts(("betas", "eps"), lambda *_: 2),
    OptimizerName.sgd: OptimizerFacts(("momentum",), lambda config, _: int(bool(config.momentum))),
    OptimizerName.adagrad: OptimizerFacts(("eps",), lambda *_: 1),
    OptimizerName.muon: OptimizerFacts(
        ("momentum", "betas", "eps"), lambda _, matrix: 1 if matrix else 2, "updates whole tables"
    ),
}
