"""`make audit` says what it found, or that it checked nothing."""

import sys

import pytest

from tests.audit import NOT_CHECKED, main

SAID = {
    "No known vulnerabilities found": 0,
    "Found 2 known vulnerabilities in 1 package": 1,
    "ConnectionError: no route to the database": 1,
    "No module named pip_audit": 1,
}


@pytest.mark.parametrize("said", SAID)
def test_no_answer_is_never_taken_for_a_good_one(said, capsys):
    command = [sys.executable, "-c", f"import sys; print({said!r}); sys.exit({SAID[said]})"]
    code, shown = main(command), capsys.readouterr()
    if "known vulnerabilities" in said:
        assert code == SAID[said] and said in shown.out
    else:
        assert code == NOT_CHECKED and shown.err.startswith("not checked: ") and said in shown.err


def test_a_command_that_is_not_there_is_said(capsys):
    assert main(["no-such-program"]) == NOT_CHECKED and "not checked" in capsys.readouterr().err
