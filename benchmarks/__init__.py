"""Measured ratios against what people use today: `make bench` writes results.md."""
