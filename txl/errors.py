"""Mistakes in a configuration, said in one line: dotted key, value, rule, remedy."""


class ConfigError(ValueError):
    """A value that the user can correct: the message names key, value, rule and remedy."""
