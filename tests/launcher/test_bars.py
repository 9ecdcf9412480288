"""The BARS presets: their specs do what BARS does, their models are its models, their numbers its numbers.

BARS' own tables are looked for in ../shared/bars.md beside the project.
"""

import csv
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sparta.models import zoo
from sparta.models.embedding import Inputs
from sparta.models.schema import Feature, Schema
from sparta.service.compare.study import load_study
from sparta.service.config import Job, load_job
from sparta.service.data.prepare import prepare
from sparta.service.data.spec import Spec, load_spec
from sparta.service.settings import Yaml
from tests.service.data import oracle
from tests.service.data.raws import read

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "launcher" / "jobs" / "bars"
STUDIES = ROOT / "launcher" / "studies"
BARS = ROOT.parent / "shared" / "bars.md"
FOLDERS = {
    "criteo_x4": "Criteo_x4",
    "avazu_x4": "Avazu_x4",
    "frappe_x1": "Frappe_x1",
    "movielenslatest_x1": "MovielensLatest_x1",
}
SPLITS = {
    "criteo_x4": (36_672_493, 4_584_062, 4_584_062),
    "avazu_x4": (32_343_172, 4_042_897, 4_042_898),
    "frappe_x1": (202_027, 57_722, 28_860),
    "movielenslatest_x1": (1_404_801, 401_372, 200_686),
}
FEATURES = {"criteo_x4": 39, "avazu_x4": 24, "frappe_x1": 10, "movielenslatest_x1": 3}
ROWS = {"criteo_x4": 910_747, "avazu_x4": 3_750_975, "frappe_x1": 5_389, "movielenslatest_x1": 90_239}
"""Of all of BARS' tables: named by its log of DCNv2 on Criteo, elsewhere what one of its parameter counts tells."""
PARAMETERS = {
    ("criteo_x4", "dcn_v2"): 20_382_577,
    ("avazu_x4", "wide_deep"): 76_544_576,
    ("avazu_x4", "pnn"): 62_679_601,
    ("avazu_x4", "deepfm"): 76_544_576,
    ("avazu_x4", "dcn_v2"): 73_385_345,
    ("frappe_x1", "wide_deep"): 423_280,
    ("frappe_x1", "pnn"): 433_491,
    ("frappe_x1", "deepfm"): 423_280,
    ("frappe_x1", "dcn"): 418_591,
    ("frappe_x1", "dlrm"): 417_891,
    ("frappe_x1", "dcn_v2"): 458_391,
    ("movielenslatest_x1", "wide_deep"): 1_328_630,
    ("movielenslatest_x1", "pnn"): 1_237_191,
    ("movielenslatest_x1", "deepfm"): 1_328_630,
    ("movielenslatest_x1", "dcn"): 1_238_661,
    ("movielenslatest_x1", "dlrm"): 1_238_391,
    ("movielenslatest_x1", "dcn_v2"): 1_243_071,
}
"""Logged by BARS. Its DNN has the MLP twice there, see launcher/studies/README.md."""
TITLES = {
    "dnn": "DNN",
    "wide_deep": "WideDeep",
    "pnn": "IPNN",
    "deepfm": "DeepFM",
    "dcn": "DCN",
    "dcn_v2": "DCNv2",
    "dlrm": "DLRM",
}
OURS = {("criteo_x4", "dlrm"), ("avazu_x4", "dlrm")}
CELLS = [(data, model) for data in FOLDERS for model in TITLES]


def study(data: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load((STUDIES / f"bars_{data}.yaml").read_text(), Yaml)
    return found


def settings(data: str, model: str) -> dict[str, Any]:
    found: dict[str, Any] = study(data)["models"][model]["set"]
    return found


def job_of(data: str, model: str) -> Job:
    """What the study trains."""
    (optimizer,) = study(data)["optimizers"].values()
    edits = settings(data, model) | optimizer["set"]
    return load_job(JOBS / f"{data}.yaml", [f"{key}={json.dumps(value)}" for key, value in edits.items()])


# --- data


def columns_of(data: str, spec: Spec) -> list[str]:
    """The header of BARS' files."""
    if data == "criteo_x4":
        return ["Label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    raws = list(dict.fromkeys(map(spec.source, spec.categories)))
    return [*(["id"] if data == "avazu_x4" else []), *spec.labels, *raws]


def rows_of(data: str, spec: Spec, rows: int, seed: int) -> list[dict[str, str]]:
    """Values of a few words a column, some of them rare or missing."""
    draw = random.Random(seed)

    def value(name: str) -> str:
        if name in spec.labels:
            return str(draw.randint(0, 1))
        if name == "hour" and data == "avazu_x4":
            return f"1410{draw.randint(21, 30)}{draw.randint(0, 23):02d}"
        if name in spec.dense:
            return draw.choice(["", "-1", "0", "1", "2", "3", str(int(draw.lognormvariate(3, 2)))])
        return draw.choice(["", "a", "b", "c", "7", f"rare{draw.randint(0, 30)}"])

    return [{name: value(name) for name in columns_of(data, spec)} for _ in range(rows)]


def write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_numbers(rows: Sequence[Mapping[str, str]], spec: Spec) -> list[dict[str, Any]]:
    """Rows as the oracle wants them."""
    numbers = (*spec.dense, *spec.labels)
    return [
        {name: (float(v) if v else None) if name in numbers else v for name, v in row.items()} for row in rows
    ]


@pytest.mark.parametrize("data", FOLDERS)
def test_files_as_bars_has_them_are_encoded_as_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    monkeypatch.setenv("SPARTA_DATA", str(tmp_path))
    spec = load_spec(JOBS / f"{data}.prepare.yaml")
    rows = {split: rows_of(data, spec, n, n) for split, n in (("train", 300), ("valid", 40), ("test", 50))}
    for split, some in rows.items():
        write(tmp_path / FOLDERS[data] / f"{split}.csv", some)
    schema = prepare(spec, tmp_path / "out", progress=False)
    assert schema.dense == ()
    assert len(schema.sparse) == FEATURES[data]
    assert "id" not in (feature.name for feature in schema.sparse)
    assert read(tmp_path / "out", "test") == oracle.encode(
        as_numbers(rows["test"], spec), as_numbers(rows["train"], spec), spec
    )


def test_a_missing_integer_of_criteo_is_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARTA_DATA", "/data")
    column = load_spec(JOBS / "criteo_x4.prepare.yaml").dense["I1"]
    assert oracle.bucket(None, column) == oracle.bucket(0.0, column) == 0


OWN = {"avazu_x4": (0.1, 0.1), "frappe_x1": (0.2, 0.1), "movielenslatest_x1": (0.2, 0.1)}


@pytest.mark.parametrize("data", OWN)
def test_the_command_for_a_split_of_ones_own_splits_so_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    path = JOBS / f"{data}.prepare.yaml"
    words = re.sub(r"\\?\n#", " ", path.read_text()).split("sparta prepare ")[1].split(" --out")[0]
    assert words.startswith(str(path.relative_to(ROOT)))
    (split,) = re.findall(r"'(split=[^']*)'", words)
    (file,) = re.findall(r"files=(\S+)", words)
    monkeypatch.chdir(tmp_path)
    rows = 2000
    spec = load_spec(path, [f"files={file}", split])
    assert spec.split is not None
    assert (spec.split.valid, spec.split.test) == OWN[data]
    write(tmp_path / file, rows_of(data, spec, rows, 1))
    one, two = (prepare(spec, tmp_path / out, progress=False) for out in ("one", "two"))
    assert one == two
    assert sum(one.splits.values()) == rows
    for share, name in zip(OWN[data], ("valid", "test"), strict=True):
        assert abs(one.splits[name] - share * rows) < 4 * (share * (1 - share) * rows) ** 0.5


def test_kaggles_file_of_criteo_is_encoded_as_bars_are(monkeypatch: pytest.MonkeyPatch) -> None:
    path = JOBS / "criteo_x4.prepare.yaml"
    monkeypatch.setenv("SPARTA_DATA", "/data")
    words = re.sub(r"\\?\n#", " ", path.read_text()).split("sparta prepare criteo ")[1].split(" --out")[0]
    overrides = [quoted or plain for quoted, plain in re.findall(r"--set (?:'([^']*)'|(\S+))", words)]
    bars, own = load_spec(path), load_spec("criteo", overrides)
    assert own.split is not None
    assert (own.split.valid, own.split.test) == (0.1, 0.1)
    assert own.files["all"]
    assert (own.dense, own.sparse, own.categories) == (bars.dense, bars.sparse, bars.categories)


# --- models


@pytest.mark.parametrize("data, model", CELLS)
def test_a_preset_is_a_job_and_its_model_has_bars_parameters(data: str, model: str) -> None:
    job = job_of(data, model)
    assert job.model.name == model
    features, rows = FEATURES[data], ROWS[data]
    sizes = [rows // features + (i < rows % features) for i in range(features)]
    schema = Schema(
        dense=(),
        sparse=tuple(Feature(name=f"C{i}", rows=size, multi=False) for i, size in enumerate(sizes)),
        labels=("y",),
        splits={"train": 1000},
    )
    with torch.device("meta"):
        built = zoo.build(job.model.name, Inputs(schema, job.model.embedding_dim), job.model.args)
    tables = sum(table.rows * table.dim for table in zoo.tables(built))
    dense = sum(p.numel() for name, p in built.named_parameters() if not name.startswith("embeddings."))
    if (data, model) in PARAMETERS:
        # A Linear before batch norm has no bias here, see MLP.
        biases = sum(job.model.args["hidden"]) if job.model.args["batch_norm"] else 0
        assert tables + dense == PARAMETERS[data, model] - biases


@pytest.mark.parametrize("data", FOLDERS)
def test_the_study_names_files_that_are_there(data: str) -> None:
    raw = study(data)
    (described,) = raw["data"].values()
    assert [*raw["data"]] == [data]
    assert set(raw["models"]) == set(zoo.ZOO)
    assert set(described["published"]) == {
        model for at, model in CELLS if at == data and (at, model) not in OURS
    }
    for key in ("job", "prepare"):
        assert (STUDIES / described[key]).is_file()


@pytest.mark.parametrize("data", FOLDERS)
def test_compare_takes_the_study(data: str) -> None:
    assert load_study(STUDIES / f"bars_{data}.yaml").name == f"bars_{data}"


# --- numbers


def logged(data: str) -> dict[str, dict[str, str]]:
    """By BARS' name of a model: its row of the table and its hyper-parameters."""
    if not BARS.is_file():
        pytest.skip(f"{BARS} is not there")
    title = data if data.endswith("x1") else f"{data}_001"
    section = BARS.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    head, _, *rows = lines
    found = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    for name, text in re.findall(r"^- \*\*(\w+)\*\*: (.*)$", section, re.MULTILINE):
        found[name] |= dict(pair.split("=", 1) for pair in text.split("; "))
    return found


def first(of: Mapping[str, str], *keys: str) -> Any:
    """The value of the first of the keys that is there."""
    return next(yaml.load(of[key], Yaml) for key in keys if key in of)


@pytest.mark.parametrize("data", FOLDERS)
def test_splits_are_told_as_bars_has_them(data: str) -> None:
    sizes = [f"{rows:,}" for rows in SPLITS[data]]
    told = re.findall(
        r"\d{1,3}(?:,\d{3})+", (JOBS / f"{data}.prepare.yaml").read_text().split(" rows, drawn")[0]
    )
    assert told == sizes
    if BARS.is_file():
        title = data if data.endswith("x1") else f"{data}_001"
        line = BARS.read_text().split(f"\n## {title}\n")[1].split("Split: ")[1].split("\n")[0]
        assert re.findall(r"\d{1,3}(?:,\d{3})+", line) == sizes


@pytest.mark.parametrize("data, model", [cell for cell in CELLS if cell not in OURS])
def test_numbers_are_those_that_bars_publishes(data: str, model: str) -> None:
    bars, job, ours = logged(data)[TITLES[model]], job_of(data, model), settings(data, model)
    args = job.model.args
    assert job.model.embedding_dim == int(bars["embedding_dim"])
    assert job.data.batch_size == int(bars["batch_size"])
    assert job.optim.tables.name == job.optim.dense.name == bars["optimizer"]
    assert job.optim.tables.lr == job.optim.dense.lr == float(bars["learning_rate"])
    assert ours["optim.tables.l2"] == float(bars["embedding_regularizer"])
    assert args["hidden"] == first(
        bars, "hidden_units", "dnn_hidden_units", "parallel_dnn_hidden_units", "top_mlp_units"
    )
    assert args["dropout"] == first(bars, "net_dropout", "top_mlp_dropout")
    assert str(args["batch_norm"]) == bars["batch_norm"]
    if model in ("dcn", "dcn_v2"):
        assert args["layers"] == first(bars, "crossing_layers", "num_cross_layers")
    if model == "dcn_v2":
        assert bars["use_low_rank_mixture"] == "False"
        assert args.get("structure", "parallel") == bars["model_structure"]
    if model == "dlrm":
        assert args["interaction"] == bars["interaction_op"]
    assert job.train.early_stop is not None
    assert job.train.early_stop.patience + 1 == int(bars.get("patience", 2))
    assert study(data)["seeds"][0] == int(bars["seed"])
    assert set(map(int, bars["seeds"].split(","))) <= set(study(data)["seeds"])
    published = study(data)["data"][data]["published"][model]
    assert [f"{published[key]:.5f}" for key in ("auc", "logloss")] == [
        re.split("[±(]", bars[key])[0] for key in ("AUC mean±sd(n)", "Logloss mean±sd(n)")
    ]
    if model != "dnn" and bars["params"] != "-":
        assert PARAMETERS[data, model] == int(bars["params"].replace(",", ""))
