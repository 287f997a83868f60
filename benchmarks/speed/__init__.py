"""How fast the project is beside its alternatives; `benchmarks/bench.py` and `benchmarks/gpu.py` are the commands."""
