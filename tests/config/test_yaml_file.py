"""A YAML file is read, or refused at once with a reason on one line."""

import os
import time

import pytest

from txl.config.yaml_file import read_yaml


def test_a_configuration_is_read_as_yaml_and_as_json(tmp_path):
    for text in ("a: {b: [1, 2.5, null]}\n", '{"a": {"b": [1, 2.5, null]}}'):
        (tmp_path / "c").write_text(text)
        assert read_yaml(tmp_path / "c") == {"a": {"b": [1, 2.5, None]}}


LAUGHS = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{x: *{a}, y: *{a}}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

BOMBS = {
    "[" * 200_000: "nested deeper than 20 levels",
    "- " * 200_000: "nested deeper than 20 levels",
    LAUGHS: "it has an alias",
    "a: b: c": "mapping values are not allowed in this context",
    "a: \x00": "control characters are not allowed|special characters",
    "x" * (1 << 21): "2,097,152 bytes, more than 1,048,576",
    "a: " + "9" * 5000: "digit",
}


@pytest.mark.parametrize("text, reason", BOMBS.items(), ids=lambda text: text[:9])
def test_what_would_crash_the_parser_or_fill_the_memory_is_one_line(text, reason, tmp_path):
    (tmp_path / "c").write_text(text)
    began = time.process_time()
    with pytest.raises(ValueError, match=reason) as error:
        read_yaml(tmp_path / "c")
    assert "\n" not in str(error.value) and time.process_time() - began < 2


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "c")
    with pytest.raises(OSError, match="is not a file"):
        read_yaml(tmp_path / "c")
