"""Texts made from seeds are encoded, decoded, scored and continued, or refused in one short line."""

import pytest

from tools.fuzz.texts import TextFuzz


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    return TextFuzz(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("seed", range(0, 200, 8))
def test_a_text_of_any_kind_gets_an_answer(fuzz, seed):
    given, wrong = fuzz.problem(seed)
    assert wrong is None, f"{given}: {wrong}"
