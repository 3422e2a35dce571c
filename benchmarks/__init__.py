"""Benchmarks of the broker: each prints the broker's cost beside the kernel's own, measured in the same run."""
