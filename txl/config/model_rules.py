"""The rules of `model=`: which architectures make sense."""

from txl.config.bounds import check_bounds
from txl.config.data import DataConfig
from txl.config.model import ModelConfig
from txl.errors import refuse_unless


def check_architecture(model: ModelConfig, data: DataConfig) -> None:
    """Checks a model that does not come from the command line, such as that of an imported checkpoint.

    Raises:
        ConfigError: A value of the model is out of its range, or values do not go together.
    """
    check_bounds(model, "model.")
    check_model(model, data)


def check_model(model: ModelConfig, data: DataConfig) -> None:
    """Raises ConfigError for values of a model that do not go together, or not with its clusters."""
    even = model.positions.facts.even_width
    if even is not None:
        width = getattr(model, even)
        rule = f"must be even for the sinusoids of model.positions={model.positions.name}; use {width + 1}"
        refuse_unless(width % 2 == 0, f"model.{even}", width, rule)
    refuse_unless(model.tie_projs, "model.tie_projs", model.tie_projs, "needs an entry; use [false]")
    if not model.adaptive:
        rule = "needs model.adaptive=true: only clusters can be narrower; use model.div_val=1"
        refuse_unless(model.div_val == 1, "model.div_val", model.div_val, rule)
    clusters = len(data.cutoffs)
    width, key = model.d_embed or model.d_model, "model.d_embed" if model.d_embed else "model.d_model"
    rule = f"leaves cluster {clusters} of data.cutoffs no width: {key}={width} is too small for it; lower it"
    refuse_unless(width // model.div_val**clusters >= 1, "model.div_val", model.div_val, rule)


def check_clamp(key: str, value: int | None, model: ModelConfig | None = None) -> None:
    """Checks a `clamp_len`.

    Args:
        key: Its dotted key.
        value: Its value; None is not checked.
        model: The model, if it is known: for some positional schemes clamping has no meaning.

    Raises:
        ConfigError: The value cannot be used.
    """
    refuse_unless(value is None or value == -1 or value > 0, key, value, "must be above 0, or -1 for no clamping")
    reason = model.positions.facts.clamp_refusal if model else None
    if model and reason:
        rule = f"has no meaning for model.positions={model.positions.name}: {reason}; use {key}=-1"
        refuse_unless(value in (None, -1), key, value, rule)
