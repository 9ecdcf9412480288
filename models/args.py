"""The types of `model.args`: a constructor's annotations are what a job file is checked against."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

Size = Annotated[int, Field(gt=0)]
Hidden = Sequence[Size]
"""Units of an MLP's layers, first to last; empty for none."""
Rate = Annotated[float, Field(ge=0, lt=1)]
"""Probability that dropout removes a unit."""
