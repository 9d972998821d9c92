"""What users can get wrong, and what they must be told: mistakes.yaml."""

from pathlib import Path

import pytest
import yaml

TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def mistakes(section: str) -> pytest.MarkDecorator:
    """Runs a test for every row of a section, as its arguments `mistake` and `answer`."""
    return pytest.mark.parametrize(("mistake", "answer"), TABLES[section].items(), ids=list(TABLES[section]))
