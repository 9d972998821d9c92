"""Text and tokens: files, vocabularies, the encoded corpus, batches."""
