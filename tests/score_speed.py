"""The speed of `txl score`: short sentences read together, beside one process per sentence; a table as JSON.

    python tests/score_speed.py --out docs/results/score-cpu.json

The model has base's sizes and random weights, its vocabulary 267,735 words with Zipf's frequencies. Both ways run in
turn, so that a busy machine slows both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from tests.support.configurations import composed  # noqa: E402
from txl.config.compose import to_dict  # noqa: E402
from txl.config.training import longest_context  # noqa: E402
from txl.data.synthetic_text import zipf_tokens  # noqa: E402
from txl.data.word_vocabulary import WordVocabulary  # noqa: E402
from txl.files import write_json  # noqa: E402
from txl.model.transformer import TransformerXL  # noqa: E402
from txl.system.hardware import cpu_model  # noqa: E402


def write_model(folder: Path) -> list[str]:
    """An exported folder of base's sizes with random weights; returns its words."""
    config = composed("model=base", "data=wt103", "hardware=cpu", "train.micro_batch_size=null")
    words = ["<eos>", *(f"w{i}" for i in range(1, config.data.vocab_size))]
    torch.manual_seed(0)
    model = TransformerXL(config.model, len(words), config.data.cutoffs, longest_context(vars(config.train)))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    sections = {key: value for key, value in to_dict(config).items() if key in ("model", "data", "train", "evaluation")}
    write_json(folder / "config.json", sections)
    write_json(folder / "vocabulary.json", WordVocabulary(words).to_dict())
    return words


def write_sentences(file: Path, words: list[str], count: int) -> list[str]:
    """Sentences of 5 to 20 words; returns them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 21, count)
    ids = np.split(zipf_tokens(rng, int(lengths.sum()), len(words) - 1), lengths.cumsum()[:-1])
    sentences = [" ".join(words[i + 1] for i in sentence) for sentence in ids]
    file.write_text("".join(f"{sentence}\n" for sentence in sentences))
    return sentences


def timed(*overrides: str) -> float:
    """Seconds that `evaluate.py` takes, from its start to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, str(PROJECT / "evaluate.py"), *overrides], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=10_000)
    parser.add_argument("--alone", type=int, default=4, help="sentences that get a process of their own")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="score-") as name:
        folder = Path(name)
        sentences = write_sentences(folder / "texts.txt", write_model(folder), options.sentences)
        common = [f"checkpoint={folder}", "hardware=cpu"]
        half = options.alone // 2
        alone = [timed(*common, f"text={text}", f"json={folder}/one.json") for text in sentences[:half]]
        together = timed(
            *common, "task=score", f"file={folder}/texts.txt", f"scores={folder}/out.tsv", f"json={folder}/all.json"
        )
        alone += [timed(*common, f"text={text}", f"json={folder}/one.json") for text in sentences[half : options.alone]]
        nats = json.loads((folder / "one.json").read_text())["text"]
        row = (folder / "out.tsv").read_text().splitlines()[options.alone - 1].split("\t")
        total = json.loads((folder / "all.json").read_text())
    seconds_alone = sum(alone) / len(alone)
    result = {
        "machine": {"name": cpu_model(), "torch": torch.__version__, "load": os.getloadavg()[0]},
        "sentences": options.sentences,
        "tokens": total["tokens"],
        "geometry": total["geometry"],
        "together": {"seconds": together, "sentences_per_second": options.sentences / together},
        "alone": {"processes": len(alone), "seconds_each": alone, "sentences_per_second": 1 / seconds_alone},
        "ratio": options.sentences * seconds_alone / together,
        "relative_difference": abs(float(row[1]) / (nats["loss"] * nats["tokens"]) - 1),
    }
    write_json(options.out, result, indent=1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
