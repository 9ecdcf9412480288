"""The small data set of the service's tests."""

from tests.service.conftest import data

__all__ = ["data"]
