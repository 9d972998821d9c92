"""Does a run fit into its device? The micro batch follows from the estimate; what can never fit is refused."""

import pytest

from tests.support.configurations import composed
from txl.errors import ConfigError
from txl.plan import device_memory
from txl.plan.run_plan import make_plan


def test_without_a_published_micro_batch_the_largest_that_fits_is_taken():
    plan = make_plan(composed("model=large", "hardware=t4", "precision=fp16", "dry_run=true"))
    assert plan.memory_gb < 0.9 * plan.device_memory_gb and plan.micro_batch_for_memory
    assert plan.micro_batch_size * plan.grad_accum_steps * plan.world_size == 128
    assert "the largest that fits" in str(plan)
    twice = f"train.micro_batch_size={2 * plan.micro_batch_size}"
    larger = composed("model=large", "hardware=t4", "precision=fp16", twice)
    assert make_plan(larger).memory_gb > 0.9 * plan.device_memory_gb


def test_a_published_micro_batch_stays_as_published():
    plan = make_plan(composed("model=base", "hardware=dgx1", "precision=fp16", "cluster=local"))
    assert plan.micro_batch_size == 32 and not plan.micro_batch_for_memory


def test_processes_on_a_cpu_share_the_memory_of_the_machine(monkeypatch):
    monkeypatch.setattr(device_memory, "main_memory_gb", lambda: 23.4)
    alone, two = (make_plan(composed("model=base", "hardware=cpu", f"gpus={n}")) for n in (1, 2))
    assert alone.memory_gb < 23.4 and alone.grad_accum_steps > 1
    assert two.memory_gb < 12.6


def test_what_can_never_fit_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(device_memory, "main_memory_gb", lambda: 1.0)
    with pytest.raises(ConfigError, match="even with train.micro_batch_size=1, and 1.1 GB are there"):
        make_plan(composed("model=large", "hardware=cpu"))
    for chosen, remedies in {
        "recompute=true precision=bf16 hardware=cpu": "use a smaller model, or hardware",
        "hardware=cpu": "use recompute=true, precision=bf16, a smaller model, or",
        "hardware=t4 hardware.memory_gb=1": "use recompute=true, precision=fp16, a smaller model, or",
    }.items():
        with pytest.raises(ConfigError, match=remedies):
            make_plan(composed("model=large", *chosen.split()))


def test_a_cluster_s_nodes_are_not_this_machine():
    assert make_plan(composed("model=base", "hardware=cpu", "cluster=slurm")).device_memory_gb is None
    assert make_plan(composed("hardware=cpu", "cluster=slurm", "cluster.mem_gb=64", "gpus=2")).device_memory_gb == 32


@pytest.mark.parametrize("hardware", ["t4", "dgx1"])
def test_old_gpus_know_no_bf16(hardware):
    with pytest.raises(ConfigError, match="precision=bf16 needs an Ampere or newer GPU"):
        composed(f"hardware={hardware}", "precision=bf16")


@pytest.mark.parametrize("key, value, remedy", [("micro_batch_size", 64, 4), ("grad_accum_steps", 2, 32)])
def test_a_chosen_micro_batch_that_can_never_fit_is_refused_with_one_that_fits(key, value, remedy):
    chosen = ["model=large", "hardware=t4", "precision=fp16", "dry_run=true"]
    with pytest.raises(ConfigError, match=f"train.{key}={value}: .* GB; use train.{key}={remedy} "):
        make_plan(composed(*chosen, f"train.{key}={value}"))
    assert make_plan(composed(*chosen, f"train.{key}={remedy}")).memory_gb < 0.9 * 16
