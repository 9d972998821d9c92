"""Comparing runs: tables of what differs and which is best, the page with curves, watching a sweep."""
