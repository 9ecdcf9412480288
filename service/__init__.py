"""The run: typed config, data pipeline, trainer, evaluation, checkpoints, metrics.

Started as `python -m sparta.service VERB`; `sparta` (the launcher) does that for the user.
Nothing is imported here, so that `sparta.service.config` loads no torch.
"""
