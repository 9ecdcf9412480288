"""The models a job can name, and how a name and its arguments become one.

A model of the user's own is `package.module:Class`: an nn.Module whose constructor takes `inputs: Inputs`
first and then keywords, that has `self.embeddings = Embeddings(inputs, ...)`, and whose forward takes a
`Batch` and returns logits (B, T). The annotated keywords are the schema of its `model.args`.
"""

import inspect
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import nn

from sparta.models.dcn import DCN
from sparta.models.dcn_v2 import DCNv2
from sparta.models.deepfm import DeepFM
from sparta.models.dlrm import DLRM
from sparta.models.dnn import DNN
from sparta.models.embedding import Embeddings, Inputs, Table
from sparta.models.errors import ConfigError
from sparta.models.names import misspelt, nearest
from sparta.models.pnn import PNN
from sparta.models.wide_deep import WideDeep

ZOO: dict[str, type] = {
    "dnn": DNN,
    "wide_deep": WideDeep,
    "pnn": PNN,
    "deepfm": DeepFM,
    "dcn": DCN,
    "dcn_v2": DCNv2,
    "dlrm": DLRM,
}


def resolve(name: str) -> type:
    """The class behind `model.name`.

    Raises:
        ConfigError: no such model, module or class, or it is no nn.Module.
    """
    if complaint := misspelt(name):
        raise ConfigError(f"model.name: {complaint}")
    if name in ZOO:
        return ZOO[name]
    module_name, _, class_name = name.partition(":")
    if not (all(part.isidentifier() for part in module_name.split(".")) and class_name.isidentifier()):
        raise ConfigError(f"model.name: {name!r} is not of the form package.module:Class")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ConfigError(
            f"model.name: {module_name!r} cannot be imported ({type(error).__name__}: {error}); "
            "put its folder on PYTHONPATH"
        ) from error
    known = [key for key, value in vars(module).items() if _is_model(value)]
    if not hasattr(module, class_name):
        raise ConfigError(
            f"model.name: module {module_name!r} has no {class_name!r}{nearest(class_name, known)}"
        )
    found = getattr(module, class_name)
    if not _is_model(found):
        raise ConfigError(f"model.name: {name!r} is no torch.nn.Module class; derive it from nn.Module")
    return found  # type: ignore[no-any-return]


def check_args(cls: type, args: Mapping[str, Any]) -> None:
    """Check `model.args` against the keywords of the constructor and their annotations.

    Raises:
        ConfigError: an unknown or missing keyword, or a value that its annotation refuses.
    """
    _converted(cls, args)


def build(name: str, inputs: Inputs, args: Mapping[str, Any]) -> nn.Module:
    """The model, its tables on the meta device.

    Raises:
        ConfigError: what `resolve`, `check_args` and the constructor refuse, or a model without Embeddings.
    """
    cls = resolve(name)
    model = cls(inputs, **_converted(cls, args))
    if not isinstance(getattr(model, "embeddings", None), Embeddings):
        raise ConfigError(
            f"model.name: {name!r} has no tables; its constructor must set self.embeddings = Embeddings(inputs)"
        )
    return model  # type: ignore[no-any-return]


def tables(model: nn.Module) -> list[Table]:
    """The logical tables of a model that `build` made."""
    embeddings = model.embeddings
    assert isinstance(embeddings, Embeddings)
    return embeddings.specs


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)


def _converted(cls: type, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as their annotations want them, such as a YAML list for a tuple."""
    keywords, hints, others = _keywords(cls)
    values = {}
    for name, value in args.items():
        if name in keywords:
            values[name] = _value(name, value, hints.get(name, Any))
        elif others:
            values[name] = value
        else:
            raise ConfigError(f"model.args: {cls.__name__} takes no {name!r}{nearest(name, list(keywords))}")
    for name, parameter in keywords.items():
        if parameter.default is inspect.Parameter.empty and name not in values:
            raise ConfigError(f"model.args: {name!r} is missing, {cls.__name__} requires it")
    return values


def _keywords(cls: type) -> tuple[dict[str, inspect.Parameter], dict[str, Any], bool]:
    """The constructor's keywords after `inputs`, all its annotations, whether it takes any other keyword."""
    constructor = cls.__init__  # type: ignore[misc]
    parameters = list(inspect.signature(constructor).parameters.values())[2:]  # without self, inputs
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    keywords = {parameter.name: parameter for parameter in parameters if parameter.kind in kinds}
    try:
        hints = get_type_hints(constructor, include_extras=True)
    except NameError as error:
        raise ConfigError(f"model.name: an annotation of {cls.__name__} is unknown ({error})") from error
    return keywords, hints, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _value(name: str, value: Any, annotation: Any) -> Any:
    # Through JSON, because YAML is of that kind: strict about numbers and words, lists serve as tuples.
    try:
        text = json.dumps(value)
    except TypeError as error:
        raise ConfigError(
            f"model.args.{name}: {value!r} is neither number, word, list nor mapping"
        ) from error
    try:
        return TypeAdapter(annotation).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("model.args", name, *first["loc"]))
        message = first["msg"][0].lower() + first["msg"][1:]
        hint = ""
        if first["type"] == "literal_error" and isinstance(value, str):
            near = get_close_matches(value, re.findall("'([^']*)'", first["ctx"]["expected"]), 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{place}: {first['input']!r}: {message}{hint}") from error
