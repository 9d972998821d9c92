"""tracking.notify: one JSON record when a run ends, fails or is requeued; the address stays secret."""

import json
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.support.configurations import composed
from tests.support.tracked_runs import STEP, new_tracker
from txl.errors import ConfigError
from txl.system.process_exit import DIVERGED, MISSED_TARGET, PREEMPTED
from txl.tracking import notify_sink
from txl.tracking.sinks import HIDDEN, TrackedRun


class Receiver(HTTPServer):
    """A server on this machine that keeps what it is sent."""

    def __init__(self, status=200):
        self.received, self.status = [], status
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://user:secret@127.0.0.1:{self.server_address[1]}/hook?key=secret"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.headers["Content-Type"], json.loads(content)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def receiver():
    server = Receiver()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "code, summary, event",
    [
        (0, {"best_valid_loss": 2.5}, "finished"),
        (0, None, "stopped"),
        (MISSED_TARGET, {"best_valid_loss": 2.5}, "missed target"),
        (DIVERGED, None, "diverged"),
        (PREEMPTED, None, "requeued"),
        (1, None, "failed"),
    ],
)
def test_one_record_says_what_became_of_the_run(receiver, tmp_path, code, summary, event):
    tracker = new_tracker(tmp_path, notify=receiver.address.replace("user:secret@", ""))
    tracker.train_step(step=7, **STEP)
    if summary:
        tracker.summary(summary)
    tracker.close(code)
    tracker.close(code)
    ((kind, notice),) = receiver.received
    assert kind == "application/json"
    assert (notice["event"], notice["exit_code"], notice["run"]) == (event, code, str(tmp_path))
    assert notice["last"]["train"]["step"] == 7 and notice["summary"] == (summary or {})


def test_a_secret_address_comes_from_the_environment(receiver, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_HOOK", receiver.address.replace("user:secret@", ""))
    new_tracker(tmp_path, notify="MY_HOOK").close(0)
    assert len(receiver.received) == 1


def test_an_address_that_does_not_work_costs_one_warning_and_is_not_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(notify_sink, "PATIENCE", 0.5)
    refusing = Receiver(status=500)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it never answers
        addresses = [f"http://127.0.0.1:{silent.getsockname()[1]}/secret", "http://127.0.0.1:9/secret"]
        addresses += [refusing.address.replace("user:secret@", ""), "http://user:secret@127.0.0.1:9/"]
        for address in addresses:
            began = time.monotonic()
            tracker = new_tracker(tmp_path, notify=address)
            tracker.summary({"train_seconds": 1.0})
            tracker.close(0)
            said = capsys.readouterr()
            assert time.monotonic() - began < 5
            assert said.out.count("warning: notify: 127.0.0.1 was not told") == 1, address
            assert "secret" not in said.out + said.err + (tmp_path / "logs" / "rank_0.log").read_text()
    refusing.shutdown()
    refusing.server_close()


def test_a_variable_that_is_not_set_costs_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "txl"):
        new_tracker(tmp_path, notify="NO_SUCH_VARIABLE").close(0)
    assert "NO_SUCH_VARIABLE holds no address" in caplog.text


def test_no_tracker_learns_the_address():
    config = composed("tracking.notify='http://host/secret'", "experiment=demo")
    run = TrackedRun.of(config)
    assert run.settings["tracking"]["notify"] == HIDDEN and config.tracking.notify.endswith("/secret")


def test_what_is_no_address_is_refused_before_the_start():
    with pytest.raises(ConfigError, match="tracking.notify=ftp://x must be an address"):
        composed("tracking.notify='ftp://x'")
