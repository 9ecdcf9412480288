"""`sparta compare`: studies of data sets, models and optimizers, from runs to tables."""
