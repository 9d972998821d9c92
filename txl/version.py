"""The version of the package, in a module of its own so that every module may ask for it."""

__version__ = "0.2.0.dev0"  # the one place: setup.cfg reads it from here
