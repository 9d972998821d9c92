"""From text files to batches of token ids: finding and downloading files, vocabularies, encoding, batches.

`corpus.open_corpus` is the entry: it encodes a data set on first use and opens the memory-mapped token files.
"""
