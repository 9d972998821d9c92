"""V100s need a build of torch for CUDA 12.6: known before anything is submitted."""

import pytest

from tests.support.configurations import composed
from txl.errors import ConfigError
from txl.launch import torch_build
from txl.launch.torch_build import check_torch_build, torch_version


@pytest.mark.parametrize("version", ["2.10.0+cu128", "2.11.0+cu130"])
def test_a_build_without_kernels_for_v100_is_refused_with_the_command_that_helps(version, monkeypatch):
    monkeypatch.setattr(torch_build, "torch_version", lambda: version)
    with pytest.raises(ConfigError, match=r"no kernels for V100-16GB \(sm_70\); .*whl/cu126") as refused:
        check_torch_build(composed("hardware=dgx1"))
    assert len(str(refused.value)) <= 300
    check_torch_build(composed("hardware=dgxa100"))
    check_torch_build(composed("hardware=dgx1", "cluster.container=image.sqsh"))


@pytest.mark.parametrize("version", ["2.10.0+cu126", "2.10.0+cu118", "2.10.0+cpu", "2.10.0a0+git1234567", ""])
def test_other_builds_are_not_refused(version, monkeypatch):
    monkeypatch.setattr(torch_build, "torch_version", lambda: version)
    check_torch_build(composed("hardware=dgx2"))


def test_the_installed_version_is_known_without_importing_torch():
    import torch

    assert torch_version() == str(torch.__version__)
