"""docs/configuration.md is what the schema and conf/ say, and explains every option."""

from tools.configuration_reference import TARGET, reference, without_meaning


def test_the_page_is_up_to_date():
    assert TARGET.read_text() == reference(), "run: python tools/configuration_reference.py"


def test_every_option_has_a_meaning():
    assert without_meaning() == [], "write a comment beside the field in txl/config/"
