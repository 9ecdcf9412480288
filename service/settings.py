"""What job files and specs share: frozen settings read from YAML, edited by `key=value`, errors in one line.

Unknown keys are refused with the nearest known one. No torch here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sparta.models.errors import ConfigError


class Yaml(yaml.SafeLoader):
    """YAML 1.1, but for floats: there 1e-5, without a point, is a text. A key that is given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_mapping(read: Callable[[], str | bytes], place: Path | str, kind: str, keys: str) -> dict[str, Any]:
    """A YAML text that is a mapping, its keys unchecked.

    Args:
        read: gives the text.
        place: names it in errors.
        kind: what it is, such as "job file"; `keys`: some of its keys.

    Raises:
        ConfigError: unreadable, no YAML, or no mapping; one line each.
    """
    try:
        raw = yaml.load(read(), Yaml)
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; give the path of a {kind}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}:{mark.line + 1}" if mark else str(place)
        raise ConfigError(
            f"{where}: not YAML ({getattr(error, 'problem', None) or 'not text'}); mend it"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{place}: a {kind} is a mapping of keys such as {keys}; see the README")
    return raw


class Settings(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def edit(raw: dict[str, Any], override: str) -> None:
    """Apply one `a.b.c=value` to a nested mapping, in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: not of the form key.key=value")
    *parents, last = key.split(".")
    for parent in parents:
        below = {} if raw.get(parent) is None else raw[parent]  # `early_stop: null` is as good as none
        raw[parent] = below
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {parent} is {below!r}, not a mapping; set it as a whole")
        raw = below
    try:
        raw[last] = yaml.load(text, Yaml)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML; quote it") from error


_OTHERS = (
    ({"files", "labels"}, "this is a spec; give it to `sparta prepare`"),
    ({"model", "optim"}, "this is a job; give it to `sparta train`"),
    ({"optimizers", "seeds"}, "this is a study; give it to `sparta compare`"),
)
"""Files of another kind, known by keys of theirs."""


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first complaint of pydantic as one line: where, what, and the nearest right thing."""
    complaints = error.errors()
    unknown = {
        one["loc"][0] for one in complaints if one["type"] == "extra_forbidden" and len(one["loc"]) == 1
    }
    for keys, told in _OTHERS:
        if keys <= unknown:
            return told
    # A key that is missing may be there under a name that is misspelt.
    first = next((one for one in complaints if one["type"] == "extra_forbidden"), complaints[0])
    place = ".".join(str(part) for part in first["loc"])
    value = first.get("input")
    match first["type"]:
        case "extra_forbidden":
            above, _, key = place.rpartition(".")
            return f"{place}: unknown key{_nearest(key, _keys(root, first['loc'][:-1]), above)}"
        case "missing":
            return f"{place}: this key is required"
        case "literal_error":
            known = [
                word.strip("'") for word in str(first["ctx"]["expected"]).replace(" or ", ", ").split(", ")
            ]
            return f"{place}: {value!r} is none of {', '.join(known)}{_nearest(str(value), known, '')}"
        case "value_error":
            message = str(first["ctx"]["error"])
            return f"{place}: {message}" if place else message
        case "tuple_type" | "list_type":
            return f"{place}: {value!r} is no list; write [{value}]"
        case "dict_type" | "model_type" | "mapping_type":
            return f"{place}: {value!r} is no mapping of keys to values"
        case _:
            return f"{place}: {value!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _nearest(word: str, known: Sequence[str], above: str) -> str:
    match = get_close_matches(word, known, 1, 0.5)
    if match:
        return f"; did you mean {above + '.' if above else ''}{match[0]}?"
    return f"; known: {', '.join(known)}" if above or known else ""


def _keys(root: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The keys a section knows, found by walking the annotations along `path`."""
    section: type[BaseModel] | None = root
    parts = iter(path)
    for part in parts:
        field = section.model_fields.get(str(part)) if section else None
        if field is None:
            return []
        if get_origin(field.annotation) is Mapping:
            next(parts, None)  # the mapping's own key, such as a table's name
        section = _section(field.annotation)
    return list(section.model_fields) if section else []


def _section(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside `X`, `X | None` or `Mapping[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section(argument)
        if found is not None:
            return found
    return None
