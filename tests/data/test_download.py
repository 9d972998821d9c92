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

from tests.support.configurations import CONF, composed
from tests.support.made_data import write_lm1b
from txl.config.data import DataConfig, Metric, VocabKind
from txl.data import fetch_file, unpack_archive
from txl.data.corpus import open_corpus
from txl.data.download import install, main
from txl.data.download_sources import SOURCES, DownloadError, Source
from txl.data.fetch_file import fetch
from txl.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves `files`; breaks each of the first `breaks` connections after `break_after` bytes."""

    def __init__(self, ranges: bool):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.breaks, self.break_after = {}, [], 0, 100_000
        self.ranges, self.status = ranges, None
        self.tags, self.honours_if_range = {}, True  # {name: ETag}

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        name = self.path[1:].partition("?")[0]
        content, tag = server.files.get(name), server.tags.get(name)
        if content is None or server.status:
            self.send_error(server.status or 404)
            return
        start = 0
        same = not server.honours_if_range or self.headers.get("If-Range") in (None, tag)
        wanted = self.headers.get("Range") if server.ranges and same else None
        if wanted:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if tag:
            self.send_header("ETag", tag)
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
    monkeypatch.setattr(fetch_file, "PAUSE", 0.001)
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
    fetch(Source((server.url("a.bin"),), sha256(CONTENT)), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and files_of(tmp_path) == ["a.bin"]
    asked = [request.get("Range") for request in server.requests]
    assert asked[0] is None and asked[1] == "bytes=100000-" and len(asked) == 3
    assert all(request["User-Agent"].startswith("txl-download") for request in server.requests)


def test_a_download_that_was_killed_goes_on_where_it_stopped(server, tmp_path):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:123_456])
    fetch(Source((server.url("a.bin"),), sha256(CONTENT)), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [request["Range"] for request in server.requests] == ["bytes=123456-"]


def test_a_part_that_is_whole_already_is_only_verified(server, tmp_path):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    fetch(Source((server.url("a.bin"),), sha256(CONTENT)), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("stale", [b"of another file" * 10, CONTENT + b"too long"])
def test_a_part_of_something_else_is_thrown_away(server, tmp_path, stale):
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(stale)
    fetch(Source((server.url("a.bin"),), sha256(CONTENT)), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_what_was_fetched_and_verified_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    fetch(Source((server.url("a.bin"),), sha256(CONTENT)), tmp_path / "a.bin")
    assert server.requests == []


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(server, tmp_path):
    server.files["a.bin"] = CONTENT
    with pytest.raises(DownloadError, match=f"has checksum {sha256(CONTENT)}, expected {'0' * 64}"):
        fetch(Source((server.url("a.bin"),), "0" * 64), tmp_path / "a.bin")
    assert files_of(tmp_path) == []


def test_a_server_that_breaks_off_without_progress_is_given_up_and_the_bytes_are_kept(server, tmp_path):
    server.files["a.bin"], server.breaks, server.break_after = CONTENT, 1, 50_000
    part = tmp_path / "a.bin.part"
    part.write_bytes(CONTENT[:10])
    source = Source((server.url("a.bin"),), sha256(CONTENT))

    def fail_from_now_on():
        server.status = 503

    progress = fetch_file.DownloadProgress.end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch_file.DownloadProgress, "end", lambda self, done: (progress(self, done), fail_from_now_on()))
        with pytest.raises(DownloadError, match="503.*bytes are kept, the same command continues"):
            fetch(source, tmp_path / "a.bin")
    assert len(server.requests) == 1 + fetch_file.ATTEMPTS and part.stat().st_size >= 50_000
    server.status = None
    fetch(source, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("status, words", [(None, "404"), (403, "403"), (500, "500")])
def test_what_the_server_refuses_is_said_at_once(server, tmp_path, status, words):
    server.status = status
    with pytest.raises(DownloadError, match=words):
        fetch(Source((server.url("none.bin"),), None), tmp_path / "a.bin")
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_said_at_once(tmp_path):
    with pytest.raises(DownloadError, match="http://127.0.0.1:9/a.zip: .*refused"):
        fetch(Source(("http://127.0.0.1:9/a.zip",), None), tmp_path / "a.zip")


# --------------------------------------------------------------------------- mirrors, and what bytes belong to


def test_the_addresses_of_a_file_are_tried_in_turn(server, tmp_path, capsys):
    server.files |= {"a.bin": CONTENT, "other.bin": b"something else"}
    urls = ("http://127.0.0.1:9/a.bin", server.url("none.bin"), server.url("other.bin"), server.url("a.bin"))
    assert fetch(Source(urls, sha256(CONTENT)), tmp_path / "a.bin") == server.url("a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and files_of(tmp_path) == ["a.bin"]
    said = capsys.readouterr().err
    assert "refused" in said and "404" in said and "it is another file" in said and said.count("; trying http") == 3


def test_if_no_address_has_the_file_the_first_reason_is_said(server, tmp_path):
    with pytest.raises(DownloadError, match=r"none.bin: the server answers 404 .*the other addresses failed, too: 1"):
        fetch(Source((server.url("none.bin"), "http://127.0.0.1:9/a"), None), tmp_path / "a.bin")


def test_a_verified_file_is_continued_from_another_address(server, tmp_path):
    """What the first address sent before it broke off is not fetched again."""
    server.files |= {"first.bin": CONTENT, "second.bin": CONTENT}
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:200_000])
    urls = ("http://127.0.0.1:9/a.bin", server.url("second.bin"))
    fetch(Source(urls, sha256(CONTENT)), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT and server.requests[0]["Range"] == "bytes=200000-"


def interrupted(server, name, folder, tag):
    """A download without a checksum that was killed after 100,000 bytes."""
    server.files[name], server.tags[name], server.breaks = CONTENT, tag, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch_file.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch(Source((server.url(name),), None), folder / "a")
    server.requests.clear()


@pytest.mark.parametrize("tag", ['"one"', None])
def test_without_a_checksum_a_part_is_continued_if_the_server_has_the_same_file(server, tmp_path, tag):
    interrupted(server, "a.bin", tmp_path, tag)
    fetch(Source((server.url("a.bin"),), None), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT and files_of(tmp_path) == ["a"]
    assert server.requests[0].get("Range") == ("bytes=100000-" if tag else None)


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_without_a_checksum_a_part_of_an_earlier_version_is_thrown_away(server, tmp_path, honours_if_range):
    interrupted(server, "a.bin", tmp_path, '"one"')
    server.files["a.bin"], server.tags["a.bin"], server.honours_if_range = CONTENT[::-1], '"two"', honours_if_range
    fetch(Source((server.url("a.bin"),), None), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT[::-1]


def test_without_a_checksum_nothing_of_another_address_is_used(server, tmp_path):
    interrupted(server, "a.bin", tmp_path, '"one"')
    server.files["b.bin"] = CONTENT[::-1]
    server.tags["b.bin"] = '"one"'
    fetch(Source((server.url("b.bin"),), None), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT[::-1]
    server.files["a.bin"] = b"new"
    fetch(Source((server.url("a.bin"),), None), tmp_path / "a")  # nor the whole file
    assert (tmp_path / "a").read_bytes() == b"new"


def test_an_empty_file_is_an_error(server, tmp_path):
    server.files["a.bin"] = b""
    assert main([server.url("a.bin"), "--to", str(tmp_path / "to")]) == 1
    assert not list((tmp_path / "to").glob("*.bin"))


def test_a_user_and_a_password_are_sent_and_never_shown(server, tmp_path, capsys):
    server.files["a.bin"] = CONTENT
    url = server.url("a.bin").replace("//", "//someone:se%40cret@") + "?key=hidden"
    assert main([url, "--to", str(tmp_path)]) == 0
    assert server.requests[0]["Authorization"] == "Basic c29tZW9uZTpzZUBjcmV0"
    written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))
    server.status = 500
    assert main([url, "--to", str(tmp_path / "b")]) == 1 and main([url]) == 1 and main([f"ftp{url}"]) == 1
    said = "".join(capsys.readouterr()) + written
    assert f"http://127.0.0.1:{server.server_port}/a.bin" in written
    assert not [word for word in ("someone", "se%40cret", "se@cret", "hidden") if word in said]


def test_a_file_without_a_published_checksum_is_bound_to_its_first_download(server, tmp_path, capsys):
    server.files["a.bin"] = CONTENT
    assert main([server.url("a.bin"), "--to", str(tmp_path)]) == 0
    (tmp_path / "a.bin").unlink()
    server.files["a.bin"] = CONTENT[::-1]
    assert main([server.url("a.bin"), "--to", str(tmp_path)]) == 1 and not (tmp_path / "a.bin").exists()
    assert "its first download" in (said := capsys.readouterr().err) and sha256(CONTENT) in said
    (tmp_path / ".download.json").unlink()  # the remedy
    assert main([server.url("a.bin"), "--to", str(tmp_path)]) == 0


# --------------------------------------------------------------------------- unpacking


def install_archive(server, content, folder, files=None, **changes):
    server.files["a.archive"] = content
    values = dict(urls=(server.url("a.archive"),), checksum=sha256(content), files=files or {}) | changes
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


def test_zeros_after_a_gzip_archive_are_refused_before_they_are_skipped_one_by_one(server, tmp_path):
    padded = tarred({"a.txt": b"a"}) + bytes(10_000)
    install_archive(server, padded, tmp_path)
    assert files_of(tmp_path) == ["a.txt"]
    with pytest.raises(DownloadError, match="cannot be unpacked: it ends with more than 1,048,576 zeros"):
        install_archive(server, padded + bytes(1 << 20), tmp_path / "other")


def test_an_archive_that_the_disk_cannot_read_is_named(tmp_path):
    (tmp_path / "a.zip").symlink_to("/proc/self/mem")  # reading its beginning is an input/output error
    with pytest.raises(DownloadError, match=r"a.zip cannot be unpacked: .*Input/output error"):
        unpack_archive.unpack(tmp_path / "a.zip", tmp_path, {}, "a.zip")


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
        install_archive(
            server, zipped({"enwik8": b"x"}), tmp_path, {"enwik8": "enwik8"}, file_checksums={"enwik8": "00" * 32}
        )
    assert not (tmp_path / "enwik8").exists()


def test_two_downloads_into_one_folder_do_not_mix(server, tmp_path):
    (tmp_path / ".download").mkdir()
    with open(tmp_path / ".download" / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another download"):
            install_archive(server, zipped({"a": b""}), tmp_path)


@pytest.mark.parametrize("name", ["lock", "received", "unpacked", "x.part", "..%2f..%2fescaped", "%2e%2e", "a%0ab"])
def test_no_name_of_an_address_does_harm(server, tmp_path, name):
    server.files[name] = CONTENT
    code = main([server.url(name), "--to", str(tmp_path / "to")])
    assert code == (1 if name in ("%2e%2e", "a%0ab") else 0)
    found = [path for path in files_of(tmp_path) if "/." not in path]
    expected = {"..%2f..%2fescaped": ["to/escaped"]}.get(name, [f"to/{name}"])
    assert found == ([] if code else expected)
    assert code == 1 or (tmp_path / found[0]).read_bytes() == CONTENT


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\rb", "a\u2028b", "a\x7fb", "a/\x85/b", "a\udc80b"])
def test_members_whose_names_have_control_characters_are_refused(server, tmp_path, pack, name):
    try:
        content = pack({"good.txt": b"good", name: b"bad"})
    except UnicodeEncodeError:
        return  # a zip cannot hold it
    with pytest.raises(DownloadError, match="control character") as error:
        install_archive(server, content, tmp_path)
    assert str(error.value).isprintable() and len(str(error.value)) <= 300
    assert [path for path in files_of(tmp_path) if not path.startswith(".download")] == []


@pytest.mark.parametrize("name", [".download/lock", ".download.json"])
def test_members_cannot_replace_the_files_of_the_download(server, tmp_path, name):
    with pytest.raises(DownloadError, match="is reserved"):
        install_archive(server, zipped({name: b"x"}), tmp_path)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_that_would_fill_the_disk_is_refused(server, tmp_path, pack, monkeypatch):
    monkeypatch.setattr(unpack_archive, "ALWAYS_ALLOWED", 10_000)
    with pytest.raises(DownloadError, match="would unpack to more than"):
        install_archive(server, pack({"zeros": bytes(30_000_000)}), tmp_path)
    assert not (tmp_path / "zeros").exists()


# --------------------------------------------------------------------------- the command


def test_wikitext_103_is_ready_to_train_on(server, tmp_path, monkeypatch, capsys):
    archive = zipped({f"wikitext-103/wiki.{split}.tokens": b" a b \n" for split in ("train", "valid", "test")})
    server.files["w.zip"] = archive
    published = SOURCES["wt103"]
    monkeypatch.setitem(SOURCES, "wt103", Source((server.url("w.zip"),), sha256(archive), published.files))
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
    beside = replace(published.beside[0], urls=(server.url("1b_word_vocab.txt"),), checksum=blob)
    here = replace(
        published, urls=(server.url("l.tar.gz"),), checksum=sha256(server.files["l.tar.gz"]), beside=(beside,)
    )
    monkeypatch.setitem(SOURCES, "lm1b", here)
    monkeypatch.setenv("TXL_DATA", str(tmp_path))
    assert main(["lm1b"]) == 0 and len(server.requests) == 2
    assert main(["lm1b"]) == 0 and len(server.requests) == 2  # all is there
    corpus = open_corpus(composed("data=lm1b", f"data.cache={tmp_path}/cache").data)
    assert len(corpus.shards) == 99 and len(corpus.vocab) == len(words.splitlines())
    monkeypatch.setitem(SOURCES, "lm1b", replace(here, beside=(replace(beside, checksum="0" * 40),)))
    (tmp_path / "lm1b" / "1b_word_vocab.txt").unlink()
    assert main(["lm1b"]) == 1 and not (tmp_path / "lm1b" / "1b_word_vocab.txt").exists()


@pytest.mark.parametrize("name", ["wt2", "ptb", "pennchar", "tinyshakespeare", "wikitext-mini"])
def test_small_data_sets_are_ready_to_train_on(server, tmp_path, monkeypatch, name):
    """Made-up texts in the archives, and under the names, that the published ones have."""
    text = b"the c a t_ <unk> N \n" * 40
    known, parts = SOURCES[name], []
    for i, part in enumerate([known, *known.beside]):
        content = (
            text
            if len(part.files) == 1
            else (tarred if name == "pennchar" else zipped)(dict.fromkeys(part.files, text))
        )
        server.files[f"{i}"] = content
        cut = {file: len(text) // 2 for file in part.cut}
        urls = (server.url("none"), server.url(f"{i}"))
        parts.append(replace(part, urls=urls, checksum=sha256(content), file_checksums={}, cut=cut, beside=()))
    monkeypatch.setitem(SOURCES, name, replace(parts[0], beside=tuple(parts[1:])))
    monkeypatch.setenv("TXL_DATA", str(tmp_path))
    how = f"experiment={name}" if (CONF / "experiment" / f"{name}.yaml").exists() else f"data={name}"
    data = composed(how, f"data.cache={tmp_path}/cache").data
    with pytest.raises(ConfigError, match=f"get it: txl download {name}"):
        open_corpus(data)
    assert main([name]) == 0
    assert len(open_corpus(data).vocab) > 4


def test_files_that_are_there_and_are_not_the_published_ones_are_named(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "enwik8").write_bytes(b"another text")
    assert main(["enwik8", "--to", str(tmp_path)]) == 1
    assert f"remove {tmp_path}/enwik8 to get it again" in capsys.readouterr().err
    assert (tmp_path / "enwik8").read_bytes() == b"another text"


def test_gpt2s_tables_get_the_names_that_others_give_them(server, tmp_path, monkeypatch):
    server.files |= {"encoder.json": b"{}", "vocab.bpe": b"a b"}
    published = SOURCES["gpt2"]
    beside = replace(published.beside[0], urls=(server.url("vocab.bpe"),), checksum=sha256(b"a b"))
    here = replace(published, urls=(server.url("encoder.json"),), checksum=sha256(b"{}"), beside=(beside,))
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


def test_the_table_has_a_checksum_for_everything_and_several_addresses():
    assert {"wt103", "wt2", "ptb", "pennchar", "wikitext-mini", "tinyshakespeare"} < SOURCES.keys()
    assert {"enwik8", "text8", "lm1b", "gpt2"} < SOURCES.keys()
    parts = [(name, part) for name, source in SOURCES.items() for part in (source, *source.beside)]
    assert {name for name, part in parts if part.checksum is None} == {"pennchar"}  # nobody has published it
    assert all(len(part.checksum or "0" * 64) in (32, 40, 64) for _, part in parts)
    assert all(len(set(part.urls)) > 1 for _, part in parts)
