"""`python -m txl COMMAND`: the same as `txl COMMAND`."""

from txl.system.process_exit import run_as_process

if __name__ == "__main__":
    run_as_process("txl.cli.main")
