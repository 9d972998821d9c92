"""Configurations of optimizers."""

from txl.config.optimizer import OptimizerConfig, OptimizerName


def optimizer_config(name: str, **changes) -> OptimizerConfig:
    values = dict(name=OptimizerName[name], lr=0.01, weight_decay=0.0, betas=[0.9, 0.999], eps=1e-8, momentum=0.0)
    return OptimizerConfig(**values | changes)
