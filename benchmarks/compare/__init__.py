"""What the benchmarks share: the same weights and inputs for every side, timing in turn, reports."""
