"""The text of a job file: from a file or an environment variable, edited, as a mapping; and back. No torch here."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sparta.models.errors import ConfigError
from sparta.service.settings import Yaml, edit, read_mapping

ENVIRONMENT = "env:"
"""Begins a job argument that names an environment variable, which holds the text: so a job travels to a cluster."""


class _Dumper(yaml.SafeDumper):
    """Quotes what `Yaml` would take for a number: 1e-5, as a text."""


_Dumper.yaml_implicit_resolvers = Yaml.yaml_implicit_resolvers


def read_text(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A job file, or that of `env:NAME`, after the `key=value` overrides; its keys are not checked.

    Raises:
        ConfigError: unreadable file, variable that is not set, bad YAML, bad override; one line each.
    """
    raw = read_mapping(lambda: _text(path), path, "job file", "name, data, model")
    for override in overrides:
        edit(raw, override)
    return raw


def write_text(raw: Mapping[str, Any]) -> str:
    """A mapping as the YAML of a job file."""
    return yaml.dump(dict(raw), Dumper=_Dumper, sort_keys=False)


def _text(path: Path) -> str:
    if not str(path).startswith(ENVIRONMENT):
        return path.read_text()
    name = str(path).removeprefix(ENVIRONMENT)
    if name not in os.environ:
        raise ConfigError(f"{path}: the environment has no {name}; set it to the text of a job file")
    return os.environ[name]
