"""The name that existing scripts call; everything lives in `kronos_pipeline`."""
