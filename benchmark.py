"""`python benchmark.py ...` in a checkout: the same as `txl benchmark ...`."""

from txl.system.process_exit import run_as_process

if __name__ == "__main__":
    run_as_process("txl.cli.benchmark")
