"""The machine and this process: devices, ranks, precision, clocks, the console."""
