"""Data: from raw files to the batches of a training step.

`spec`, `raw`, `split`, `vocab`, `encode`, `learn`, `extend`, `parts` and `prepare` make a dataset folder, `synth`
makes raw files to try it on; `partitions` encodes raw files one by one as they arrive; `order`, `rowgroups` and
`loader` read datasets back. Each is imported by its own name.
"""
