"""Speed of the project beside its alternatives; `benchmarks/bench.py` and `benchmarks/gpu.py` are the commands."""
