"""What a message tells a user to write instead is accepted, with a plan."""

import re

import pytest

from tests.support.mistakes import mistakes
from tools.fuzz.configurations import check_command_line
from txl.errors import ConfigError

# Messages with these words leave the value to the user.
OPEN_REMEDIES = r"lower it|raise it|leave|give|set |must be|use (another|one)|such as"


@mistakes("remedies")
def test_following_the_remedy_of_a_message_helps(mistake, answer, monkeypatch, tmp_path):
    """Here `answer` is the command line after the remedy was followed."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        check_command_line("train", mistake.split(), whole=False)
    check_command_line("train", answer.split(), whole=False)
    message = str(error.value)
    new = [word for word in answer.split() if word not in mistake.split()]
    named = any(word in message or {*word.split("=", 1)} & {*re.findall(r"[\w.]+", message)} for word in new)
    assert named or re.search(OPEN_REMEDIES, message), f"{message} does not say {new}"
