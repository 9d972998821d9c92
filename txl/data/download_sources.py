"""Where data sets are on the web, and the checksums of their files."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from txl.files import hash_of_file, sha256_of_file

CHUNK = 1 << 20  # bytes


class DownloadError(Exception):
    """A download failed; the message says in one line why, and what to do."""


@dataclass(frozen=True)
class Source:
    """A data set on the web."""

    url: str
    sha256: str | None  # of the downloaded file
    files: dict[str, str] = field(default_factory=dict)  # {member of the archive: its name here}; empty: all members
    file_sha256: dict[str, str] = field(default_factory=dict)  # {name here: sha256} where it is known
    git_blob: str | None = None  # instead of sha256: git's hash of the content
    beside: "Source | None" = None  # another part of the same data set

    @property
    def checksum(self) -> str | None:
        """The expected checksum; None: it is not known."""
        return self.sha256 or self.git_blob

    def checksum_of(self, path: Path) -> str:
        """The checksum of a file, of the same kind as `checksum`."""
        return git_blob_of(path) if self.git_blob else sha256_of_file(path)


LM1B = "1-billion-word-language-modeling-benchmark-r13output"


LM1B_FILES = [
    *(f"{LM1B}/training-monolingual.tokenized.shuffled/news.en-{i:05d}-of-00100" for i in range(1, 100)),
    *(f"{LM1B}/heldout-monolingual.tokenized.shuffled/news.en.heldout-{i:05d}-of-00050" for i in range(50)),
]

SOURCES = {
    "wt103": Source(
        "https://wikitext.smerity.com/wikitext-103-v1.zip",
        "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
        {f"wikitext-103/wiki.{split}.tokens": f"{split}.txt" for split in ("test", "valid", "train")},
    ),
    "enwik8": Source(
        "http://mattmahoney.net/dc/enwik8.zip",
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        {"enwik8": "enwik8"},
        {"enwik8": "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"},
    ),
    "text8": Source(
        "http://mattmahoney.net/dc/text8.zip",
        "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        {"text8": "text8"},
    ),
    "lm1b": Source(
        f"http://www.statmt.org/lm-benchmark/{LM1B}.tar.gz",
        "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e",
        {name: name for name in LM1B_FILES},
        beside=Source(
            "https://raw.githubusercontent.com/rafaljozefowicz/lm/75a7fcd71a2abbc8e6034d6028eebdf1b0e2631f/"
            "1b_word_vocab.txt",
            None,
            {"1b_word_vocab.txt": "1b_word_vocab.txt"},
            git_blob="249020af8359cef6aff5ce083bad42bc7cce0715",
        ),
    ),
    "gpt2": Source(  # no text: the tables of data.vocab=bpe
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        {"encoder.json": "vocab.json"},
        beside=Source(
            "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
            "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            {"vocab.bpe": "merges.txt"},
        ),
    ),
}


def git_blob_of(path: Path) -> str:
    """Git's hash of the content of a file."""
    return hash_of_file(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size))
