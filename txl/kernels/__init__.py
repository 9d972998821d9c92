"""Triton kernels, for GPUs: imported only where they run, because Triton is not everywhere."""
