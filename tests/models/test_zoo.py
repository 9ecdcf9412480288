"""Names and arguments of models: what fits is built, what does not is one line with the way out."""

import importlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Gt
from torch import Tensor, nn

import sparta.models
from sparta.models import zoo
from sparta.models.batch import Batch
from sparta.models.deepfm import DeepFM
from sparta.models.embedding import Embeddings, Inputs
from sparta.models.errors import ConfigError
from tests.models.toys import materialise, toy_batch, toy_schema

HERE = __name__


class Own(nn.Module):
    """A user's model, as the README has it, with every kind of argument."""

    def __init__(
        self,
        inputs: Inputs,
        units: Annotated[int, Gt(0)],
        *,
        scale: float = 1.0,
        shape: tuple[int, ...] = (1,),
        how: Literal["up", "down"] = "up",
        names: Mapping[str, bool] | None = None,
        anything=None,  # type: ignore[no-untyped-def]
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(inputs, deep=False, wide=True)
        self.args = (units, scale, shape, how, names, anything)

    def forward(self, batch: Batch) -> Tensor:
        return self.embeddings(batch).wide().sum(1, keepdim=True)  # type: ignore[no-any-return]


class Open(nn.Module):
    def __init__(self, inputs: Inputs, **others: Any) -> None:
        super().__init__()
        self.embeddings = Embeddings(inputs)
        self.others = others


class Tableless(nn.Module):
    def __init__(self, inputs: Inputs) -> None:
        super().__init__()


class Misspelt(nn.Module):
    def __init__(self, inputs: Inputs, *, units: "Nonsense" = 1) -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__()


class NoModule:
    pass


def test_every_name_of_the_zoo_resolves_and_builds() -> None:
    assert sparta.models.ZOO is zoo.ZOO
    for name, cls in zoo.ZOO.items():
        assert zoo.resolve(name) is cls
        zoo.check_args(cls, {})
        assert isinstance(zoo.build(name, Inputs(toy_schema()), {}), cls)


def test_the_face_of_the_package_is_its_list() -> None:
    for name in sparta.models.__all__:
        assert getattr(sparta.models, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        sparta.models.nothing  # noqa: B018


@pytest.mark.parametrize(
    "name,message",
    [
        ("depfm", "'depfm' is no model; did you mean 'deepfm'"),
        ("xyz", "known: dnn, wide_deep"),
        ("sparta.models.deepfm:DepFM", "no 'DepFM'; did you mean 'DeepFM'"),
        ("no_such_package.x:Y", "'no_such_package.x' cannot be imported .ModuleNotFoundError"),
        (f"{HERE}:NoModule", "is no torch.nn.Module class"),
        (f"{HERE}:HERE", "is no torch.nn.Module class"),
        ("a b:C", "not of the form package.module:Class"),
        (":C", "not of the form package.module:Class"),
        ("a:", "not of the form package.module:Class"),
    ],
)
def test_a_name_that_is_no_model_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        zoo.resolve(name)
    assert str(error.value).startswith("model.name: ")


def test_a_users_module_that_fails_to_import_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_models.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"'broken_models' cannot be imported \(ZeroDivisionError"):
        zoo.resolve("broken_models:Mine")
    sys.modules.pop("broken_models", None)


@pytest.mark.parametrize(
    "cls,args,message",
    [
        (DeepFM, {"hiden": [4]}, "model.args: DeepFM takes no 'hiden'; did you mean 'hidden'"),
        (DeepFM, {"inputs": 1}, "takes no 'inputs'"),
        (DeepFM, {"self": 1}, "takes no 'self'"),
        (DeepFM, {"hidden": 400}, "model.args.hidden: 400: "),
        (DeepFM, {"hidden": "400"}, "model.args.hidden: '400': "),
        (DeepFM, {"hidden": [400, -1]}, "model.args.hidden.1: -1: input should be greater than 0"),
        (DeepFM, {"hidden": [400, 2.5]}, "model.args.hidden.1: 2.5: "),
        (DeepFM, {"hidden": None}, "model.args.hidden: None: "),
        (DeepFM, {"dropout": 1}, "model.args.dropout: 1: input should be less than 1"),
        (DeepFM, {"dropout": "0.5"}, "model.args.dropout: '0.5': "),
        (DeepFM, {"dropout": float("nan")}, "model.args.dropout: nan: "),
        (DeepFM, {"batch_norm": 1}, "model.args.batch_norm: 1: "),
        (zoo.ZOO["dcn"], {"layers": 0}, "model.args.layers: 0: input should be greater than 0"),
        (zoo.ZOO["dcn"], {"layers": True}, "model.args.layers: True: "),
        (zoo.ZOO["dcn_v2"], {"structure": "paralel"}, "did you mean 'parallel'"),
        (zoo.ZOO["dlrm"], {"interaction": "sum"}, "model.args.interaction: 'sum': "),
        (Own, {}, "model.args: 'units' is missing, Own requires it"),
        (Own, {"units": 0}, "model.args.units: 0: "),
        (Own, {"units": 1, "names": {"a": 3}}, "model.args.names.a: 3: "),
        (Own, {"units": 1, "anything": {1, 2}}, "neither number, word, list nor mapping"),
        (Misspelt, {"units": 1}, "an annotation of Misspelt is unknown"),
    ],
)
def test_arguments_that_do_not_fit_the_constructor_are_refused(
    cls: type, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        zoo.check_args(cls, args)
    assert "\n" not in str(error.value)


def test_arguments_reach_the_constructor_as_its_annotations_want_them() -> None:
    args = {"units": 3, "scale": 2, "shape": [1, 2], "how": "down", "names": {"a": True}, "anything": [None]}
    model: Any = zoo.build(f"{HERE}:Own", Inputs(toy_schema()), args)
    assert model.args == (3, 2.0, (1, 2), "down", {"a": True}, [None])
    assert materialise(model)(toy_batch(toy_schema(), 5, seed=1)).shape == (5, 1)


def test_a_users_model_may_take_any_keyword() -> None:
    model: Any = zoo.build(f"{HERE}:Open", Inputs(toy_schema()), {"colour": "red"})
    assert model.others == {"colour": "red"}


def test_a_model_without_tables_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no tables; its constructor must set self\.embeddings"):
        zoo.build(f"{HERE}:Tableless", Inputs(toy_schema()), {})


def test_tables_are_those_of_the_embeddings() -> None:
    model = materialise(zoo.build("wide_deep", Inputs(toy_schema(sparse=1, multi=0)), {}))
    assert [(table.name, table.dim) for table in zoo.tables(model)] == [("C1", 16), ("C1.wide", 1)]
