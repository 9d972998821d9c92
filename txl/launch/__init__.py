"""From a configuration to running ranks: run folders, local processes, SLURM jobs."""
