"""A sweep as one throttled SLURM job array: `python train.py -m hydra/launcher=slurm_array seed=1,2,3 hardware=dgx2`.

hydra-submitit-launcher composes each point again on its node, from whatever conf/ holds by then, checks nothing, and
ignores swept `nodes`. Here every point is composed and checked before the first is submitted, and what a node runs is
what `cluster=slurm` would have run. A folder without __init__.py: Hydra finds plugins in a namespace package.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import OmegaConf


@dataclass
class SlurmArrayConf:
    _target_: str = "hydra_plugins.txl_slurm.slurm_array.SlurmArrayLauncher"
    array_parallelism: int = 256  # jobs of the array that run at once; the resources are `cluster.*`'s


class SlurmArrayLauncher(SlurmLauncher):
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from txl.cli.hydra_main import checked_config
        from txl.cli.sweeps import point_label, with_wandb_names
        from txl.config.schema import RunConfig
        from txl.errors import ConfigError
        from txl.launch.start import Launcher

        points = []
        shared = set.intersection(*map(set, job_overrides))
        swept = {one.partition("=")[0] for overrides in job_overrides for one in overrides if one not in shared}
        values: dict[str, dict[str, None]] = {key: {} for key in sorted(swept)}
        for key, _, value in (one.partition("=") for overrides in job_overrides for one in overrides):
            if key in swept:
                values[key][value] = None
        sweep = [f"{key}={','.join(found)}" for key, found in values.items()]
        for overrides in job_overrides:
            print("  " + " ".join(one for one in filter_overrides(overrides) if one not in shared))
            cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            ours = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
            point = checked_config(ours, RunConfig, point_label(overrides, swept))
            if point.cluster.name != "slurm":
                raise ConfigError(f"hydra/launcher=slurm_array needs cluster=slurm, not cluster={point.cluster.name}")
            points.append(with_wandb_names(point, overrides, swept, sweep))
        launcher = Launcher()
        launcher.submit(points, self.params["array_parallelism"])
        code = launcher.wait()
        launcher.show_next_commands(is_sweep=True)
        if code:
            raise SystemExit(code)
        return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]


ConfigStore.instance().store(group="hydra/launcher", name="slurm_array", node=SlurmArrayConf(), provider="txl_slurm")
