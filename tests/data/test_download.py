"""Downloads against a server of our own: resumed, verified, and unpacked where they belong."""

import fcntl
import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.support.configurations import composed
from tests.support.made_data import write_lm1b
from txl.config.data import DataConfig, Metric, VocabKind
from txl.data import download
from txl.data.corpus import open_corpus
from txl.data.download import fetch, install, main
from txl.data.download_sources import SOURCES, DownloadError, Source

PROJECT = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves `files`; breaks each of the first `breaks` connections after `break_after` bytes."""

    def __init__(self, ranges: bool):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.breaks, self.break_after = {}, [], 0, 100_000
        self.ranges, self.status = ranges, None

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        content = server.files.get(self.path[1:])
        if content is None or server.status:
            self.send_error(server.status or 404)
            return
        start = 0
        wanted = self.headers.get("Range") if server.ranges else None
        if wanted:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: server.break_after]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "no_ranges"])
def server(request, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.001)
    running = Server(request.param)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --------------------------------------------------------------------------- fetching


def test_a_download_goes_on_after_every_broken_connection(server, tmp_path):
    server.files["a.bin"], server.breaks = CONTENT, 2
    fetch(Source(server.url("a.bin"), sha256(CONTENT)), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and files_of(tmp_path) == ["a.bin"]
    asked = [request.get("Range") for request in server.requests]
    assert asked[0] is None and asked[1] == "bytes=100000-" and len(asked) == 3
    assert all(request["User-Agent"].startswith("txl-download") for request in server.requests)


def test_a_download_that_was_killed_goes_on_where_it_stopped(server, tmp_path):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:123_456])
    fetch(Source(server.url("a.bin"), sha256(CONTENT)), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [request["Range"] for request in server.requests] == ["bytes=123456-"]


def test_a_part_that_is_whole_already_is_only_verified(server, tmp_path):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    fetch(Source(server.url("a.bin"), sha256(CONTENT)), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("stale", [b"of another file" * 10, CONTENT + b"too long"])
def test_a_part_of_something_else_is_thrown_away(server, tmp_path, stale):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(stale)
    fetch(Source(server.url("a.bin"), sha256(CONTENT)), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_what_was_fetched_and_verified_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    fetch(Source(server.url("a.bin"), sha256(CONTENT)), tmp_path / "a.bin")
    assert server.requests == []


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(server, tmp_path):
    server.files["a.bin"] = CONTENT
    with pytest.raises(DownloadError, match=f"has sha256 {sha256(CONTENT)}, expected {'0' * 64}"):
        fetch(Source(server.url("a.bin"), "0" * 64), tmp_path / "a.bin")
    assert files_of(tmp_path) == []


def test_a_server_that_breaks_off_without_progress_is_given_up_and_the_bytes_are_kept(server, tmp_path):
    server.files["a.bin"], server.breaks, server.break_after = CONTENT, 1, 50_000
    part = tmp_path / "a.bin.part"
    part.write_bytes(CONTENT[:10])
    source = Source(server.url("a.bin"), sha256(CONTENT))

    def fail_from_now_on():
        server.status = 503

    progress = download.DownloadProgress.end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download.DownloadProgress, "end", lambda self, done: (progress(self, done), fail_from_now_on()))
        with pytest.raises(DownloadError, match="503.*bytes are kept, the same command continues"):
            fetch(source, tmp_path / "a.bin")
    assert len(server.requests) == 1 + download.ATTEMPTS and part.stat().st_size >= 50_000
    server.status = None
    fetch(source, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("status, words", [(None, "404"), (403, "403"), (500, "500")])
def test_what_the_server_refuses_is_said_at_once(server, tmp_path, status, words):
    server.status = status
    with pytest.raises(DownloadError, match=words):
        fetch(Source(server.url("none.bin"), None), tmp_path / "a.bin")
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_said_at_once(tmp_path):
    with pytest.raises(DownloadError, match="http://127.0.0.1:9/a.zip: .*refused"):
        fetch(Source("http://127.0.0.1:9/a.zip", None), tmp_path / "a.zip")


# --------------------------------------------------------------------------- unpacking


def install_archive(server, content, folder, files=None, **changes):
    server.files["a.archive"] = content
    values = dict(url=server.url("a.archive"), sha256=sha256(content), files=files or {}) | changes
    return install(Source(**values), folder)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_members_are_unpacked_under_their_new_names(server, tmp_path, pack):
    members = {"set/wiki.train.tokens": b"a b", "set/wiki.valid.tokens": b"a", "set/README": b"no"}
    files = {"set/wiki.valid.tokens": "valid.txt", "set/wiki.train.tokens": "train.txt"}
    assert install_archive(server, pack(members), tmp_path, files) == [tmp_path / "valid.txt", tmp_path / "train.txt"]
    assert files_of(tmp_path) == ["train.txt", "valid.txt"] and (tmp_path / "train.txt").read_bytes() == b"a b"
    assert install_archive(server, pack(members), tmp_path, files) and len(server.requests) == 1


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_without_names_everything_is_unpacked(server, tmp_path, pack):
    install_archive(server, pack({"set/a.txt": b"a", "b.txt": b"b"}), tmp_path)
    assert files_of(tmp_path) == ["b.txt", "set/a.txt"]


def test_a_plain_file_is_kept_as_it_is(server, tmp_path):
    install_archive(server, b"only text", tmp_path)
    assert (tmp_path / "a.archive").read_bytes() == b"only text" and files_of(tmp_path) == ["a.archive"]


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("escape", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt"])
def test_a_member_that_leads_out_of_the_folder_unpacks_nothing(server, tmp_path, pack, escape):
    folder = tmp_path / "deep" / "data"
    with pytest.raises(DownloadError, match="leads out of the folder"):
        install_archive(server, pack({"good.txt": b"good", escape: b"bad"}), folder)
    assert [name for name in files_of(tmp_path) if not name.startswith("deep/data/.download/")] == []
    assert not list(tmp_path.rglob("good.txt"))


def test_a_tarball_is_unpacked_in_its_own_order(server, tmp_path, monkeypatch):
    """Every step back would decompress it from its beginning."""
    rewinds, seek = [], gzip.GzipFile.seek

    def counted(self, offset, whence=io.SEEK_SET):
        if whence == io.SEEK_SET and offset < self.tell():
            rewinds.append(offset)
        return seek(self, offset, whence)

    monkeypatch.setattr(gzip.GzipFile, "seek", counted)
    members = {f"./set/{name}": CONTENT for name in "dacb"}
    names = {f"set/{name}": name for name in "abcd"}
    assert install_archive(server, tarred(members), tmp_path, names) == [tmp_path / name for name in "abcd"]
    assert len(rewinds) <= 2  # to look whether it is one, and after its list was read


def test_links_are_not_unpacked(server, tmp_path):
    install_archive(server, tarred({"link": None, "a.txt": b"a"}), tmp_path)
    assert files_of(tmp_path) == ["a.txt"] and not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_missing_member_and_a_damaged_archive_are_errors(server, tmp_path, pack):
    with pytest.raises(DownloadError, match="has no train"):
        install_archive(server, pack({"other": b""}), tmp_path, {"train": "train.txt"})
    whole = pack({"train": CONTENT})
    damaged = whole[:50_000] + bytes(1000) + whole[51_000:]
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        install_archive(server, damaged, tmp_path, {"train": "train.txt"})
    assert not (tmp_path / "train.txt").exists()


def test_a_file_inside_is_verified_too(server, tmp_path):
    with pytest.raises(DownloadError, match="enwik8 of .* expected 00"):
        install_archive(server, zipped({"enwik8": b"x"}), tmp_path, {"enwik8": "enwik8"}, file_sha256={"enwik8": "00"})
    assert not (tmp_path / "enwik8").exists()


def test_two_downloads_into_one_folder_do_not_mix(server, tmp_path):
    (tmp_path / ".download").mkdir()
    with open(tmp_path / ".download" / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another download"):
            install_archive(server, zipped({"a": b""}), tmp_path)


# --------------------------------------------------------------------------- the command


def test_wikitext_103_is_ready_to_train_on(server, tmp_path, monkeypatch, capsys):
    archive = zipped({f"wikitext-103/wiki.{split}.tokens": b" a b \n" for split in ("train", "valid", "test")})
    server.files["w.zip"] = archive
    published = SOURCES["wt103"]
    monkeypatch.setitem(SOURCES, "wt103", Source(server.url("w.zip"), sha256(archive), published.files))
    monkeypatch.setenv("TXL_DATA", str(tmp_path))
    assert main(["wt103"]) == 0
    assert files_of(tmp_path) == ["wt103/test.txt", "wt103/train.txt", "wt103/valid.txt"]
    output = capsys.readouterr()
    assert f"{tmp_path}/wt103/train.txt  6 bytes" in output.out and "MB" in output.err
    values = dict(name="wt103", path=f"{tmp_path}/wt103", split=[0.9, 0.1], vocab=VocabKind.word, lower_case=False)
    values |= dict(min_freq=0, cutoffs=[], metric=Metric.ppl, cache=f"{tmp_path}/cache")
    assert len(open_corpus(DataConfig(**values)).vocab) == 3


def test_the_billion_words_are_ready_to_train_on(server, tmp_path, monkeypatch):
    """The tarball's files where `data=lm1b` looks for them, and the vocabulary, which another server has, beside."""
    write_lm1b(tmp_path / "made", shards=99, lines=1)
    published = SOURCES["lm1b"]
    members = {"README": b"no", **{name: b"the cat\n" for name in published.files}}
    members |= {name: (tmp_path / "made" / name).read_bytes() for name in published.files if "news.en-" in name}
    words = (tmp_path / "made" / "1b_word_vocab.txt").read_bytes()
    server.files |= {"l.tar.gz": tarred(members), "1b_word_vocab.txt": words}
    blob = hashlib.sha1(b"blob %d\0" % len(words) + words).hexdigest()
    beside = replace(published.beside, url=server.url("1b_word_vocab.txt"), git_blob=blob)
    here = replace(published, url=server.url("l.tar.gz"), sha256=sha256(server.files["l.tar.gz"]), beside=beside)
    monkeypatch.setitem(SOURCES, "lm1b", here)
    monkeypatch.setenv("TXL_DATA", str(tmp_path))
    assert main(["lm1b"]) == 0 and len(server.requests) == 2
    assert main(["lm1b"]) == 0 and len(server.requests) == 2  # all is there
    corpus = open_corpus(composed("data=lm1b", f"data.cache={tmp_path}/cache").data)
    assert len(corpus.shards) == 99 and len(corpus.vocab) == len(words.splitlines())
    monkeypatch.setitem(SOURCES, "lm1b", replace(here, beside=replace(beside, git_blob="0" * 40)))
    (tmp_path / "lm1b" / "1b_word_vocab.txt").unlink()
    assert main(["lm1b"]) == 1 and not (tmp_path / "lm1b" / "1b_word_vocab.txt").exists()


def test_gpt2s_tables_get_the_names_that_others_give_them(server, tmp_path, monkeypatch):
    server.files |= {"encoder.json": b"{}", "vocab.bpe": b"a b"}
    published = SOURCES["gpt2"]
    beside = replace(published.beside, url=server.url("vocab.bpe"), sha256=sha256(b"a b"))
    here = replace(published, url=server.url("encoder.json"), sha256=sha256(b"{}"), beside=beside)
    monkeypatch.setitem(SOURCES, "gpt2", here)
    assert main(["gpt2", "--to", str(tmp_path)]) == 0
    assert files_of(tmp_path) == ["merges.txt", "vocab.json"] and (tmp_path / "merges.txt").read_bytes() == b"a b"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["wt104"], "neither one of wt103"),
        (["ftp://a.org/x"], "nor an address"),
        (["http://127.0.0.1:9/a.zip"], "--to FOLDER"),
        (["wt103", "--sha256", "00"], "is known"),
        (["http://127.0.0.1:9/a.zip", "--to", "{}"], "refused"),
        (["http://127.0.0.1:9/a.zip", "--to", "{}/file/x"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(tmp_path, arguments, words):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "txl.download", *(a.format(tmp_path) for a in arguments)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_table_has_a_checksum_for_everything():
    assert {"wt103", "enwik8", "text8", "lm1b", "gpt2"} == SOURCES.keys()
    sources = [part for source in SOURCES.values() for part in (source, source.beside) if part]
    assert all(len(source.checksum) == (40 if source.git_blob else 64) for source in sources)
