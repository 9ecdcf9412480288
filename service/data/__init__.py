"""Data: from raw files to the batches of a training step.

`spec`, `raw`, `split`, `vocab`, `encode` and `prepare` make a dataset folder, `synth` makes raw files to try it
on; `order`, `rowgroups` and `loader` read the dataset back. Each is imported by its own name.
"""
