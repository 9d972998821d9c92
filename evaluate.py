"""`python evaluate.py ...` in a checkout: the same as `txl evaluate ...`."""

from txl.system.process_exit import run_as_process

if __name__ == "__main__":
    run_as_process("txl.cli.evaluate")
