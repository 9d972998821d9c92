"""No password and no key reaches config.yaml, the records of a run, wandb, or a log by way of the configuration."""

import os
import re
from typing import Any

from txl.errors import ConfigError, shortened

# Environment variables whose value a configuration may contain, by ${oc.env:NAME}: it is written to the run's files.
# $TXL_VISIBLE_VARIABLES adds names, with commas between them.
VISIBLE_VARIABLES = {
    *("TXL_DATA", "TXL_CACHE", "HOME", "USER", "LOGNAME", "HOSTNAME", "PWD", "TMPDIR", "SCRATCH", "WORK", "PROJECT"),
    *("DATA", "STORE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "WANDB_MODE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
    *("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
    *("SLURM_NNODES", "SLURM_TMPDIR", "SLURM_CLUSTER_NAME", "SLURM_SUBMIT_DIR"),
}
ADDED = "TXL_VISIBLE_VARIABLES"

WITH_PASSWORD = re.compile(r"\w://[^\s/@:]*:[^\s/@]+@")


def environment_value(name: str, *default: Any) -> Any:
    """${oc.env:NAME} or ${oc.env:NAME,default}: the value of an environment variable.

    Raises ConfigError if its name is on no list of visible variables, or if it has no value and there is no default.
    """
    if name not in VISIBLE_VARIABLES | set(os.environ.get(ADDED, "").split(",")):
        raise ConfigError(
            f"${{oc.env:{shortened(str(name))}}} would write the variable's value to the run's files; if it is no "
            f"secret, allow it: {ADDED}={shortened(str(name))} in the environment"
        )
    found = os.environ.get(name)
    if found is None and not default:
        raise ConfigError(f"${{oc.env:{name}}}: the environment variable {name} is not set; set it, or add a default")
    return default[0] if found is None else found


def refuse_passwords(values: Any, free_text: frozenset[str], prefix: str = "") -> None:
    """Raises ConfigError if a value is an address with a password: no option needs one, and all are written down.

    Args:
        values: A configuration, or a section of it.
        free_text: Keys whose values are texts for the model, which are not looked at.
        prefix: The place of the section in the whole configuration.
    """
    for key, value in values.items():
        if isinstance(value, dict):
            refuse_passwords(value, free_text, f"{prefix}{key}.")
        elif isinstance(value, str) and key not in free_text and WITH_PASSWORD.search(value):
            raise ConfigError(
                f"{prefix}{key} holds an address with a password, which would be written down; leave it out"
            )
