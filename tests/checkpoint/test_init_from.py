"""init_from: a run begins with the weights of another, whatever its vocabulary."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from tests.support.configurations import composed
from tests.support.entry_points import run
from tests.support.golden import MODELS, golden, reference_file
from tests.support.in_process import train_here
from tests.support.models import model_config
from tests.support.tiny_runs import TINY_RUN, metrics
from txl.checkpoint.checkpoint_files import read_checkpoint_file
from txl.checkpoint.exchange import import_model
from txl.checkpoint.init_from import (
    BY_DISTANCE,
    check_init_from_source,
    copy_weights_that_fit,
    initialize_from_checkpoint,
    shared_ids,
)
from txl.checkpoint.resolve import resolve_checkpoint
from txl.config.compose import from_dict, to_dict
from txl.config.model import ModelConfig, Positions
from txl.config.resume_changes import resume_differences
from txl.data.bpe_vocabulary import BpeVocabulary
from txl.data.byte_vocabulary import ByteVocabulary
from txl.data.char_vocabulary import CharVocabulary
from txl.data.vocabulary import vocabulary_from_dict
from txl.data.word_vocabulary import WordVocabulary
from txl.errors import ConfigError
from txl.launch.choose_checkpoint import find_checkpoint
from txl.launch.prepare import prepare
from txl.launch.slurm_submit import has_work
from txl.model.transformer import TransformerXL
from txl.plan.run_plan import make_plan
from txl.train.train_state import seed_everything

OLD = "the a cat dog sat ran on under mat tree and or quickly never".split()
NEW = "the a fish sat on under sea and or never swims slowly".split()  # 8 of them are old
STILL = ["optimizer=sgd", "optimizer.lr=1e-45", "scheduler=constant", "train.max_step=1"]  # an update changes nothing


def text(folder, words):
    """train/valid/test.txt with every word in each; returns the overrides that name them."""
    rng, overrides = random.Random(0), ["data=text", "data.vocab=word", f"data.cache={folder}/cache"]
    folder.mkdir(parents=True)
    for split, lines in (("train", 200), ("valid", 40), ("test", 40)):
        made = [" ".join(words), *(" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(lines))]
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in made))
        overrides.append(f"data.{split}={folder}/{split}.txt")
    return overrides


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run, and the overrides of its data."""
    folder = tmp_path_factory.mktemp("source")
    data = [*text(folder / "text", OLD), "data.cutoffs=[6]"]
    train_here(*TINY_RUN, *data, "train.max_step=20", f"run_dir={folder}/run")
    return folder / "run", data


def weights(run_dir, step):
    return read_checkpoint_file(run_dir / "checkpoints" / f"step_{step}", "model.pt")


def vocabulary(run_dir):
    return vocabulary_from_dict(read_checkpoint_file(resolve_checkpoint(run_dir), "vocabulary.json"))


def test_with_the_same_vocabulary_it_begins_at_the_checkpoint_s_loss(source, tmp_path, capsys):
    folder, data = source
    train_here(*TINY_RUN, *data, *STILL, f"init_from={folder}", f"run_dir={tmp_path}/run")
    printed = capsys.readouterr().out
    parameters = sum(tensor.numel() for tensor in weights(folder, 20).values())
    assert "init_from: 15 of 15 words carried over, 0 initialised;" in printed
    assert f"; {parameters:,} parameters of {parameters:,} loaded" in printed
    assert metrics(tmp_path / "run", "valid")[-1]["loss"] == metrics(folder, "valid")[-1]["loss"]


def test_another_vocabulary_takes_the_rows_of_shared_words_and_goes_on_without_the_source(source, tmp_path, capsys):
    folder, _ = source
    copy, tuned = shutil.copytree(folder, tmp_path / "copy", symlinks=True), tmp_path / "run"
    shared = [*TINY_RUN, *text(tmp_path / "text", NEW), "data.cutoffs=[4]", "seed=5", f"init_from={copy}", "gpus=2"]
    done = run("train.py", *shared, *STILL, f"run_dir={tuned}", cwd=tmp_path)
    assert done.stdout.count("init_from: 9 of 13 words carried over, 4 initialised;") == 1

    old, new, words = weights(folder, 20), weights(tuned, 1), vocabulary(tuned).words
    ids = {word: i for i, word in enumerate(vocabulary(folder).words)}
    seed_everything(5)
    fresh = TransformerXL(composed(*shared).model, len(words), [4], 16).state_dict()
    for name, tensor in new.items():
        if name in ("embedding.tables.0", "softmax.biases.0"):
            for i, word in enumerate(words):
                expected = old[name][ids[word]] if word in ids else fresh[name][i]
                assert torch.equal(tensor[i], expected), f"{name}: {word}"
        else:
            assert torch.equal(tensor, old[name]), name

    shutil.rmtree(copy)
    more = [override for override in STILL if not override.startswith("train.max_step")]
    go_on = ["train.max_step=2", "resume=auto", "gpus=1", f"run_dir={tuned}"]
    train_here(*shared[:-1], *more, *go_on)
    assert "init_from:" not in capsys.readouterr().out and [r["step"] for r in metrics(tuned)] == [1, 2]


def carried(model, vocab, old_model, old_vocab, old_cutoffs):
    """The model's state before and after, and the counts."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counts = copy_weights_that_fit(model, vocab, old_model.state_dict(), old_vocab, old_cutoffs)
    return before, model.state_dict(), counts


def build(vocab, cutoffs, distances=10, **changes):
    model = TransformerXL(model_config(**changes), len(vocab), cutoffs, distances)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def test_with_widths_of_their_own_rows_stay_in_their_cluster():
    old_vocab, vocab = WordVocabulary("abcdefgh"), WordVocabulary("bxadgcy")
    old_model, model = build(old_vocab, [3, 6], div_val=2), build(vocab, [2, 5], div_val=2)
    before, after, counts = carried(model, vocab, old_model, old_vocab, [3, 6])
    old = old_model.state_dict()
    moved = {(0, 0): (0, 1), (1, 1): (1, 0)}  # b in the head, d in the first tail; the others changed clusters
    for i, (begin, end) in enumerate(model.embedding.clusters.spans):
        for row in range(end - begin):
            for name in (f"embedding.tables.{i}", f"softmax.biases.{i}"):
                cluster, of = moved.get((i, row), (None, None))
                expected = before[name][row] if cluster is None else old[name][of]
                assert torch.equal(after[name][row], expected), (name, row)
    assert counts.words == len(moved) and torch.equal(after["softmax.cluster_weight"], old["softmax.cluster_weight"])


def test_in_one_table_rows_are_found_wherever_the_cutoffs_are():
    old_vocab, vocab = WordVocabulary("abcdefgh"), WordVocabulary("hxa")
    old_model, model = build(old_vocab, [3, 6], tie_weight=False), build(vocab, [1], tie_weight=False)
    before, after, counts = carried(model, vocab, old_model, old_vocab, [3, 6])
    old = old_model.state_dict()
    for name in ("embedding.tables.0", "softmax.weights.0", "softmax.biases.0"):
        assert torch.equal(after[name][[0, 2]], old[name][[7, 0]]) and torch.equal(after[name][1], before[name][1])
    kept = before["softmax.cluster_weight"].numel() + before["softmax.cluster_bias"].numel()
    assert torch.equal(after["softmax.cluster_weight"], before["softmax.cluster_weight"])  # two there, one here
    one_word = 2 * 16 + 1
    assert (counts.words, counts.all_parameters - counts.loaded_parameters) == (2, kept + one_word)


@pytest.mark.parametrize("positions", [Positions.shaw, Positions.absolute_per_layer])
@pytest.mark.parametrize("distances", [6, 14])
def test_of_learned_distances_the_nearest_come_over(positions, distances):
    vocab = WordVocabulary("abc")
    old_model, model = build(vocab, [], positions=positions), build(vocab, [], distances, positions=positions)
    before, after, _ = carried(model, vocab, old_model, vocab, [])
    for name in set(BY_DISTANCE) & after.keys():
        both = min(10, distances)
        assert torch.equal(after[name][:, -both:], old_model.state_dict()[name][:, -both:]), name
        assert torch.equal(after[name][:, :-both], before[name][:, :-both]), name


def test_tokens_of_every_kind_are_found_by_what_they_are():
    for old, new, shared in (
        (ByteVocabulary(b"abc"), ByteVocabulary(b"bcd"), [(0, 1), (1, 2)]),
        (CharVocabulary("abc", unk=True), CharVocabulary("bd", unk=True), [(0, 1), (2, 3)]),
        (CharVocabulary("abc"), CharVocabulary("bd", unk=True), [(0, 1)]),
        (
            WordVocabulary(["<eos>", "a", "<unk>"]),
            WordVocabulary(["a", "<S>", "U"], eos="<S>", unk="U"),
            [(0, 1), (1, 0), (2, 2)],
        ),
        (BpeVocabulary("abc", ["a b"]), BpeVocabulary("bad", []), [(0, 1), (1, 0)]),
    ):
        assert list(zip(*(ids.tolist() for ids in shared_ids(new, old)), strict=True)) == shared


@pytest.mark.parametrize("name", ["large_like_div4", "untied", "attn_shaw"])
def test_an_imported_checkpoint_is_a_beginning(name, tmp_path):
    case, _, tensors = golden(next(path for path in MODELS if path.stem == name))
    import_model(reference_file(tmp_path / "checkpoint_best.pt", case, tensors), tmp_path / "ours")
    theirs = read_checkpoint_file(tmp_path / "ours", "run.json")
    config = composed(f"init_from={tmp_path}/ours", "model.dropout=0.3")
    config = replace(config, model=replace(from_dict(theirs["model"], ModelConfig), name="mine", dropout=0.3))
    check_init_from_source(config)
    vocab, lengths = vocabulary(tmp_path / "ours"), case["config"]
    longest = lengths["tgt_len"] + lengths["ext_len"] + lengths["mem_len"]
    model = TransformerXL(config.model, len(vocab), theirs["data"]["cutoffs"], longest)
    counts = initialize_from_checkpoint(model, vocab, config)
    assert counts.words == len(vocab) and counts.loaded_parameters == counts.all_parameters
    for name, tensor in read_checkpoint_file(tmp_path / "ours", "model.pt").items():
        assert torch.equal(model.state_dict()[name], tensor), name


def damaged_copy(folder, tmp_path):
    copy = shutil.copytree((folder / "checkpoints" / "best").resolve(), tmp_path / "damaged")
    (copy / "model.pt").write_bytes((copy / "model.pt").read_bytes()[:-1])
    return copy


MISTAKES = {
    "absent": (["init_from=nowhere"], "init_from=nowhere does not exist; name a run folder or one of its checkpoints"),
    "empty": (["init_from={tmp}"], "init_from={tmp} holds no manifest.json"),
    "damaged": (["init_from={damaged}"], "init_from={damaged}: checkpoint {damaged} is damaged: model.pt differs from"),
    "activation": (["model.activation=gelu"], "model.activation=relu, this run gelu: its weights do not fit"),
    "values": (["model.value_residual=true"], "model.value_residual=false, this run true: its weights do not fit"),
    "width": (["model.d_model=32"], "model.d_model=16, this run 32: its weights do not fit; set model.d_model=16"),
    "positions": (["model.positions=shaw"], "has model.positions=relative, this run shaw"),
    "kind": (["data.vocab=char"], "has data.vocab=word, this run char"),
    "narrower": (["model.div_val=2"], "has model.div_val=1, this run 2"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_before_any_work(name, source, tmp_path):
    folder, data = source
    overrides, message = MISTAKES[name]
    places = {"tmp": tmp_path, "damaged": damaged_copy(folder, tmp_path)}
    given = [f"init_from={folder}", *(override.format(**places) for override in overrides)]
    config = composed(*TINY_RUN, *data, *given, f"run_dir={tmp_path}/run")
    for resume in (None, "auto"):
        with pytest.raises(ConfigError) as error:
            find_checkpoint(replace(config, resume=resume), tmp_path / "run")
        assert message.format(**places) in str(error.value) and "\n" not in str(error.value)
        with pytest.raises(ConfigError):  # before a job is submitted
            has_work(replace(config, resume=resume), tmp_path / "run")
        with pytest.raises(ConfigError), prepare(replace(config, resume=resume)):
            pytest.fail("it must not begin")
    assert not (tmp_path / "run").exists()


def test_where_it_began_is_part_of_what_a_run_is(source):
    folder, data = source
    plain, tuned = composed(*TINY_RUN, *data), composed(*TINY_RUN, *data, f"init_from={folder}")
    assert make_plan(plain).run_dir != make_plan(tuned).run_dir
    older = json.loads(json.dumps(to_dict(plain)))
    del older["init_from"]  # as it was written before there was such a key
    assert resume_differences(older, to_dict(plain)) == []
    assert resume_differences(older, to_dict(tuned)) == [f"init_from was null, is {folder}"]
