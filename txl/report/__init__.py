"""Finished runs: tables and curves, from their run folders."""
