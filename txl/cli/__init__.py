"""The command line: Hydra's configuration composed and checked, mistakes in one line."""
