"""The rules of `data=`: which files, vocabularies and splits make sense."""

import math

from txl.config.data import SOURCE_OPTIONS, VOCAB_OPTIONS, DataConfig, TypedText
from txl.errors import refuse_unless, refuse_unused


def check_data_options(data: DataConfig) -> None:
    """Raises ConfigError for options of a data set that do not go together. Reads no file."""
    edges = [0, *data.cutoffs]
    rising = all(a < b for a, b in zip(edges[:-1], edges[1:], strict=True))
    refuse_unless(rising, "data.cutoffs", data.cutoffs, "must rise from above 0, such as [20000,40000,200000]")
    if data.vocab_size and data.cutoffs:
        rule = f"must end below data.vocab_size={data.vocab_size}"
        refuse_unless(data.cutoffs[-1] < data.vocab_size, "data.cutoffs", data.cutoffs, rule)
    whole = len(data.split) in (2, 3) and min(data.split) > 0 and math.isclose(sum(data.split), 1, abs_tol=1e-6)
    rule = "must be two or three fractions above 0 (train, valid, test) whose sum is 1, such as [0.9,0.05,0.05]"
    refuse_unless(whole, "data.split", data.split, rule)
    sizes = not data.split_bytes or (len(data.split_bytes) == 3 and min(data.split_bytes) > 0)
    refuse_unless(sizes, "data.split_bytes", data.split_bytes, "must be three sizes above 0: train, valid, test")
    _check_source_options(data)
    _check_vocabulary_options(data)
    _check_file_options(data)


def _check_source_options(data: DataConfig) -> None:
    for option, unused in SOURCE_OPTIONS.items():
        value = getattr(data, option)
        used = option in data.source.facts.options
        refuse_unused(used, f"data.{option}", value, unused, f"data.source={data.source.name}")


def _check_vocabulary_options(data: DataConfig) -> None:
    kind, facts = data.vocab.name, data.vocab.facts
    able = " or ".join(f"data.source={source.name}" for source in facts.sources)
    rule = f"needs {able}, not data.source={data.source.name}; use another vocabulary"
    refuse_unless(data.source in facts.sources, "data.vocab", kind, rule)
    for option, unused in VOCAB_OPTIONS.items():
        value = getattr(data, option)
        refuse_unused(option in facts.options, f"data.{option}", value, unused, f"data.vocab={kind}")
        rule = f"is needed by data.vocab={kind}: {facts.remedy}"
        refuse_unless(value is not None or option not in facts.needed, f"data.{option}", value, rule)
    used = facts.splits_typed_text
    refuse_unused(used, "data.typed_text", data.typed_text, TypedText.whitespace, f"data.vocab={kind}")
    for option in ("eos", "unk"):
        value = getattr(data, option)
        refuse_unless(value.split() == [value], f"data.{option}", f"{value!r}", "must be one word")
    refuse_unless(data.eos != data.unk, "data.unk", data.unk, "must be another word than data.eos")
    for option in ("min_freq", "max_size"):
        value = getattr(data, option)
        rule = f"chooses among the words of train, but data.vocab_file={data.vocab_file} says which there are; use one"
        refuse_unless(not value or data.vocab_file is None, f"data.{option}", value, rule)


def _check_file_options(data: DataConfig) -> None:
    for option in ("train", "valid", "test"):
        value = getattr(data, option)
        rule = "excludes data.file: give three files, or one and data.split"
        refuse_unless(value is None or data.file is None, f"data.{option}", value, rule)
    found_elsewhere = data.path is not None or data.max_bytes is not None  # in a folder, or made on first use
    if data.file is None and not found_elsewhere:
        for option in ("train", "valid"):
            rule = f"but data={data.name} needs files: {data.source.facts.example}"
            refuse_unless(getattr(data, option) is not None, f"data.{option}", None, rule)
