"""What the reference implementation computed is what we compute.

Cases are found by what their JSON files hold, never by name. TXL_GOLDEN_DIR points elsewhere when it is set.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.golden import FILES, cases, close, geometry, load_model, model_config, segment_losses
from txl.checkpoint.reference_format import from_reference
from txl.config.optimizer import OptimizerConfig, OptimizerName
from txl.data.batches import TokenStream
from txl.data.moses import moses_tokenize
from txl.data.word_vocabulary import WordVocabulary, split_words
from txl.optim.build import build_optimizer


@cases("config", "segments")
def test_losses_memories_and_gradients_equal_the_reference(path, case):
    tensors = load_file(path.with_suffix(".safetensors"))
    model = load_model(case, tensors).train()
    losses, mems = segment_losses(model, tensors["stream"], geometry(case["config"]), case["segments"])
    close(torch.stack(losses).detach(), tensors["train/mean_loss_per_segment"])
    if "train/mems_after_last" in tensors:
        close(torch.stack(mems).transpose(1, 2), tensors["train/mems_after_last"])
    losses[-1].backward()
    expected = {k.removeprefix("grad/"): t for k, t in tensors.items() if k.startswith("grad/")}
    expected = from_reference(expected, model_config(case["config"]))
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in expected.items():
        close(ours[name], gradient)
    assert len(expected) > 10


@cases("config", "eval_overrides")
def test_evaluation_with_other_lengths_equals_the_reference(path, case):
    if case["eval_overrides"] is None:
        case = dict(case, eval_overrides={})
    tensors = load_file(path.with_suffix(".safetensors"))
    if "eval/stream" not in tensors:
        assert not case["eval_overrides"]
        return
    model = load_model(case, tensors).eval()
    with torch.no_grad():
        expected = tensors["eval/mean_loss_per_segment"]
        lengths = geometry(case["config"] | case["eval_overrides"])
        losses, _ = segment_losses(model, tensors["eval/stream"], lengths, len(expected))
    close(torch.stack(losses), expected)


@cases("kwargs", "steps", "params")
def test_lamb_takes_the_reference_steps(path, case):
    tensors = load_file(path.with_suffix(".safetensors"))
    names = list(case["params"])
    parameters = {name: torch.nn.Parameter(tensors[f"init/{name}"].clone()) for name in names}
    config = OptimizerConfig(
        name=OptimizerName.lamb,
        lr=case["kwargs"]["lr"],
        weight_decay=case["kwargs"]["weight_decay"],
        betas=[0.9, 0.999],
        eps=1e-6,
        momentum=0.0,
    )
    optimizer = build_optimizer(config, parameters.items())
    for step in range(case["steps"]):
        for name in names:
            parameters[name].grad = tensors[f"grad/{step}/{name}"].clone()
        optimizer.step()
        for name in names:
            torch.testing.assert_close(parameters[name].detach(), tensors[f"param/{step}/{name}"], rtol=1e-6, atol=1e-8)


@cases("n", "batch_size", "batches")
def test_batches_are_the_reference_batches(path, case):
    seeds, memory = case["roll_seeds"], case["mem_len_warmup"]
    stream = TokenStream(
        np.arange(case["n"], dtype=np.int32),
        case["batch_size"],
        case["tgt_len"],
        ext_len=case["ext_len"],
        roll_seed=seeds[0] - 1 if seeds else None,
        warmup_len=memory or 0,
    )
    assert stream.n_batches == case["n_batch"]
    epoch = max(1, len(seeds))
    for index, expected in enumerate(case["batches"]):
        batch = stream.batch(epoch, index)
        assert batch.input.t().tolist() == expected["data"]
        assert batch.target.t().tolist() == expected["target"]
        assert batch.counted == expected["counted"]


@cases("text", "idx2sym")
def test_word_vocabularies_are_the_reference_vocabularies(path, case):
    kwargs = {key: value for key, value in case["kwargs"].items() if key != "special"}
    counts = Counter(split_words(case["text"], kwargs.get("lower_case", False), eos=None))
    vocabulary = WordVocabulary.from_counts(counts, **kwargs)
    assert list(vocabulary.words) == case["idx2sym"]
    if case["ids_add_eos"] is not None:
        ids = vocabulary.encode(case["text"], add_eos=True)
        assert ids.tolist() == case["ids_add_eos"]
    if case["ids_no_eos"] is not None:
        assert vocabulary.encode(case["text"], add_eos=False).tolist() == case["ids_no_eos"]


@pytest.mark.parametrize(
    "path, case",
    [
        pytest.param(path, case, id=f"{path.stem}-{i}")
        for path, found in FILES.items()
        if isinstance(found, list)
        for i, case in enumerate(found)
        if {"text", "tokens"} <= set(case)
    ],
)
def test_typed_text_is_tokenized_as_the_reference_does(path, case):
    assert moses_tokenize(case["text"]) == case["tokens"]
