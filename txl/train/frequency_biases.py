"""model.bias_init=unigram: a new model predicts every token with its frequency in the training text.

Otherwise the first steps are spent on learning how frequent each token is.
"""

import numpy as np
import torch

from txl.data.corpus import Corpus
from txl.model.transformer import TransformerXL

BLOCK = 2**24  # tokens counted at a time: numpy makes 8 bytes of each


def set_frequency_biases(model: TransformerXL, corpus: Corpus) -> None:
    """Set the biases of a new model's softmax; every rank counts the whole split and comes to the same numbers."""
    tokens, counts = corpus.tokens("train"), np.zeros(len(corpus.vocab), np.int64)
    for begin in range(0, len(tokens), BLOCK):
        counts += np.bincount(tokens[begin : begin + BLOCK], minlength=len(counts))
    model.softmax.set_frequencies(torch.from_numpy(counts))
