"""Artifacts on object storage, shared by machines with an output folder each: `KRONOS_ARTIFACT_STORE=s3://bucket/prefix`.

The output folder stays the place of all work. Commands and Dagster's runs fetch before they read and deliver when they
have written; without the variable nothing of this package is imported. `objects` reads and writes objects, `pointers`
replaces the pointer of a ticker, `names` says which artifacts are shared, `known` remembers what both sides had in
common, `exchange` fetches and delivers, and `sharing` does so around a command.
"""
