"""The machine and this process on it: devices, processes, precision, clocks, the console."""
