"""Benchmarks: kernels against their rivals, and training end to end."""
