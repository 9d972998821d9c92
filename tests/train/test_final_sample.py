"""The text that a training ends with."""

import pytest
import torch

from tests.support.in_process import train_here
from tests.support.made_data import write_corpus
from tests.support.tiny_runs import TINY_RUN
from txl.model import attention


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_sample_is_computed_in_the_precision_of_the_run(precision, dtype, tmp_path, monkeypatch):
    """On a GPU the kernel of attention would otherwise compute in float32, which many of them have no room for."""
    seen, plain = set(), attention.attention_with_bias

    def watched(query, key, *rest, **options):
        if query.shape[2] == 1:  # token by token
            seen.add(key.dtype)
        return plain(query, key, *rest, **options)

    monkeypatch.setattr(attention, "attention_with_bias", watched)
    shared = [*write_corpus(tmp_path / "text"), *TINY_RUN, "train.max_step=1", "scheduler.max_step=99"]
    train_here(*shared, "sample_tokens=3", f"precision={precision}", f"run_dir={tmp_path}/run")
    assert seen == {dtype}
