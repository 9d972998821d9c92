"""What a resumed run may change, and what it may not: the mathematics of training. What its end consists of."""

from typing import Any

from txl.config.compose import to_dict
from txl.config.config_hash import FILES, run_defining_options
from txl.config.schema import RunConfig, Then
from txl.errors import shown


def resume_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lists what a resume must not change: ["optimizer.lr was 0.01, is 0.02", ...]; empty if it may go on.

    Both are configurations as from `to_dict`. A key that only one of them has came or went with a version: it is
    ignored.
    """
    before, after = run_defining_options(old), run_defining_options(new)
    differences = []
    for key in before.keys() & after.keys() - set(FILES):
        if before[key] != after[key]:
            differences.append(f"{key} was {shown(before[key])}, is {shown(after[key])}")
    if old["seed"] != new["seed"]:
        differences.append(f"seed was {old['seed']}, is {new['seed']}")
    was, now = old["train"]["max_step"], new["train"]["max_step"]
    if now < was:
        differences.append(f"train.max_step was {was}, is {now}: it may only rise")
    curve = f"scheduler.max_step was {before.get('scheduler.max_step')}, is {after.get('scheduler.max_step')}"
    if curve in differences and not new["scheduler"]["max_step"]:
        i = differences.index(curve)
        length = before["scheduler.max_step"]
        differences[i] = (
            f"train.max_step was {was}, is {now}, and the learning rate would end there: "
            f"set scheduler.max_step={length} to keep the learning rate's curve"
        )
    return sorted(differences)


def final_evaluations(config: RunConfig) -> dict[str, Any]:
    """The evaluations at the end of a training, with their options. summary.json holds them beside the results.

    A finished run is finished only for the evaluations that were made: with other ones they are made again.
    """
    asked: dict[str, Any] = {"test": True} if config.valid.enabled else {}
    if config.then is Then.evaluate:
        asked["evaluation"] = to_dict(config.evaluation)
    if config.sample_tokens:
        asked["sample"] = config.sample_tokens
    return asked
