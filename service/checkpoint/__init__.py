"""Checkpoints: complete or not there at all, whatever was killed, filled or damaged."""
