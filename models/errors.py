"""The errors a user can cause. Each is one line that names the value, the rule and the way out.

They live below everything else so that every layer raises the same kinds; the command line prints
them without a traceback and exits with their code.
"""


class SpartaError(Exception):
    """Something the user can mend; printed as one line, never as a traceback (unless `-v`)."""

    exit_code = 1


class ConfigError(SpartaError):
    """A job file, a spec, a command line or a dataset that disagrees with them."""

    exit_code = 2


class DataError(SpartaError):
    """A file, column or row whose content breaks a rule."""

    exit_code = 3


class DivergedError(DataError):
    """A loss, a gradient or a score that is not finite: the settings do not train, whatever the data."""


class PlanError(SpartaError):
    """A table that cannot be placed as asked."""

    exit_code = 4
