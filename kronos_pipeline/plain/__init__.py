"""The chain without Dagster, step by step: what the commands do, and what they print."""
