"""What runs have differently: their configurations by the keys that differ."""

import json
from pathlib import Path
from typing import Any

from txl.files import flatten

IGNORED_KEYS = ("run_dir", "resume", "cluster.wait")  # runs that differ in these alone are the same point


def read_flat_config(run: Path) -> dict[str, Any]:
    """config.yaml with dotted keys."""
    import yaml

    return flatten(yaml.load((run / "config.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def name_points(configurations: list[dict[str, Any]]) -> list[str]:
    """Name each run by the keys that differ from the others; a single one by its name and seed."""
    if len(configurations) == 1:
        return [f"{configurations[0]['name']} seed={configurations[0]['seed']}"]
    keys = sorted({key for values in configurations for key in values} - set(IGNORED_KEYS))
    differing = [key for key in keys if len({json.dumps(values.get(key)) for values in configurations}) > 1]
    named = (" ".join(f"{key}={values.get(key)}" for key in differing) for values in configurations)
    return [name or str(values["name"]) for name, values in zip(named, configurations, strict=True)]
