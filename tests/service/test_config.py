"""The job file: what is refused, how it is said, and that nothing is lost on the way to disk."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparta.models.errors import ConfigError
from sparta.service.config import Job, load_job

JOB = {
    "name": "toy",
    "data": {"path": "data/toy", "batch_size": 64, "streams": 16},
    "model": {"name": "deepfm", "args": {"hidden": [8]}},
    "sharding": {"constraints": {"C3": ["row_wise"]}},
}


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(JOB))
    return path


def test_a_dumped_job_reads_back_equal(job_file: Path, tmp_path: Path) -> None:
    job = load_job(job_file, ["tables.C3.lr=0.5", "train.early_stop.patience=3"])
    again = tmp_path / "again.yaml"
    again.write_text(job.dump())
    assert load_job(again) == job
    assert load_job(again).hash() == job.hash()


def test_an_override_edits_before_validation(job_file: Path) -> None:
    job = load_job(job_file, ["optim.tables.lr=2e-3", "model.args.hidden=[4, 4]", "data.batch_size=32"])
    assert job.optim.tables.lr == 0.002
    assert job.model.args["hidden"] == [4, 4]
    assert job.data.batch_size == 32
    assert job.hash() != load_job(job_file).hash()


@pytest.mark.parametrize(
    "override, words",
    [
        ("data.batchsize=3", "data.batchsize: unknown key; did you mean data.batch_size?"),
        ("tables.C3.dims=3", "tables.C3.dims: unknown key; did you mean tables.C3.dim?"),
        ("train.early_stop.patince=1", "did you mean train.early_stop.patience?"),
        ("colour=red", "colour: unknown key; known: format, name, data"),
        ("optim.tables.name=adagard", "did you mean adagrad?"),
        ("optim.dense.name=adamm", "did you mean adam?"),
        ("optim.tables={name: adagrad}", "engine rows has no adagrad"),
        ("optim.tables={name: helen, engine: fbgemm}", "engine fbgemm has no helen"),
        ("optim.tables={name: nadam, engine: fbgemm}", "engine fbgemm has no nadam; use engine: rows"),
        (
            "optim.tables={name: adagrad, engine: fbgemm, weight_decay: 0.1}",
            "engine fbgemm has no weight_decay; use engine: rows",
        ),
        ("optim.tables={name: sgd, engine: fbgemm, l2: 0.1}", "engine fbgemm has no l2; use engine: rows"),
        ("tables.C3.weight_decay=-1", "tables.C3.weight_decay: -1"),
        (
            "optim.tables={name: helen, ascend_fraction: 0.3}",
            "ascend_fraction 0.3 is not 1 over a whole number",
        ),
        (
            "optim.tables={name: adam, rho: 0.02}",
            "optim.tables.rho 0.02: read by helen, sam, asam, but tables learn by adam; drop it",
        ),
        ("optim.tables={name: helen, eta: 0.5}", "optim.tables.eta 0.5: read by asam"),
        ("optim.tables={name: sam, xi: 0.1}", "optim.tables.xi 0.1: read by helen"),
        ("tables.C3={rho: 0.5}", "tables.C3.rho 0.5: its optimizer rowwise_adagrad does not read it"),
        ("optim.tables={name: helen, frequency: total}", "'total' is none of cumulative, batch, dataset"),
        ("train.epochs=-1", "train.epochs: -1: input should be greater than 0"),
        ("checkpoint.evry=3", "checkpoint.evry: unknown key; did you mean checkpoint.every?"),
        ("checkpoint.keep=0", "checkpoint.keep: 0: input should be greater than 0"),
        ("tolerate.bad_row=3", "tolerate.bad_row: unknown key; did you mean tolerate.bad_rows?"),
        ("tolerate.bad_rows=-1", "tolerate.bad_rows: -1"),
        ("tolerate.stuck_seconds=0", "tolerate.stuck_seconds: 0: input should be greater than 0"),
        ("data.watch={poll_seconds: 3}", "data.watch.folder: this key is required"),
        ("data.watch={folder: x, idle_seconds: 0}", "data.watch.idle_seconds: 0"),
        (
            "data.watch={folder: 's3://b/in'}",
            "data.watch.folder: 's3://b/in' is a URL, and only local folders",
        ),
        ("model.embedding_dim=0", "model.embedding_dim: 0"),
        ("optim.tables.lr=.inf", "optim.tables.lr: inf"),
        ("data.batch_size=100", "batch_size 100 does not divide by streams 16"),
        ("data=3", "data: 3"),
        ("name=a/b", "name: 'a/b'"),
        (
            "data.path=${NOT_SET_ANYWHERE}/x",
            "data.path: ${NOT_SET_ANYWHERE}/x names a variable that is not set",
        ),
        ("checkpoint.path=s3://${NOT_SET_ANYWHERE}/x", "checkpoint.path: s3://${NOT_SET_ANYWHERE}/x names a"),
        ("format=2", "format: job format 2, this sparta reads 1; write the job for this version"),
        ("optim.schedule.decay=exponential", "give a floor above 0"),
    ],
)
def test_each_mistake_is_one_line_that_names_the_key(job_file: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_job(job_file, [override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["novalue", "=3", "a..b=3", "name.x=3"])
def test_a_malformed_override_is_refused(job_file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_job(job_file, [override])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "", "\x00"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_job(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothere"):
        load_job(tmp_path / "nothere.yaml")


def test_the_data_path_takes_the_environment_and_becomes_absolute(
    job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARTA_DATA", "/somewhere")
    assert load_job(job_file, ["data.path=${SPARTA_DATA}/x"]).data.path == "/somewhere/x"
    assert Path(load_job(job_file).data.path).is_absolute()


def test_checkpoints_may_be_behind_a_url_or_anywhere(job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "s3://b")
    assert load_job(job_file, ["checkpoint.path=${BUCKET}/run"]).checkpoint.path == "s3://b/run"
    assert load_job(job_file, ["checkpoint.path=here"]).checkpoint.path == str(Path("here").absolute())
    assert load_job(job_file).checkpoint.path is None


@pytest.mark.parametrize("override", ["train.epochs=2", "optim.schedule.decay=linear"])
def test_what_arrives_has_no_known_end(job_file: Path, override: str) -> None:
    assert load_job(job_file, ["data.watch.folder=raw"]).data.watch is not None
    with pytest.raises(ConfigError, match=r"data\.watch: nobody knows how many steps there will be"):
        load_job(job_file, ["data.watch.folder=raw", override])


def test_every_setting_has_a_default_but_the_essential() -> None:
    job = Job.model_validate({"name": "x", "data": {"path": "p"}, "model": {"name": "dnn"}})
    assert job.train.ranks == 1


def test_config_and_schema_load_no_torch() -> None:
    code = (
        "import sys, sparta.service.config, sparta.models.schema, sparta.models.errors; "
        "sys.exit(sorted({'torch', 'torchrec', 'torchx', 'pyarrow'} & set(sys.modules)) != [])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_required_key_that_is_misspelt_is_named(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        yaml.safe_dump({**JOB, "modle": JOB["model"]} | {"model": None}).replace("model: null\n", "")
    )
    with pytest.raises(ConfigError, match="modle: unknown key; did you mean model"):
        load_job(path)


def test_a_key_that_is_given_twice_is_refused_by_its_line(job_file: Path) -> None:
    job_file.write_text(job_file.read_text() + "name: again\n")
    line = job_file.read_text().count("\n")
    with pytest.raises(ConfigError, match=rf"job.yaml:{line}: not YAML \(name is given twice\)"):
        load_job(job_file)


@pytest.mark.parametrize(
    ("edits", "lr"),
    [
        ([], 0.02),
        (["optim.tables.name=helen"], 1e-3),
        (["optim.tables.name=adam"], 1e-3),
        (["optim.tables.name=nadam"], 1e-3),
        (["optim.tables.name=sam", "optim.tables.base=radam"], 1e-3),
        (["optim.tables.name=helen", "optim.tables.base=rowwise_adagrad"], 0.02),
        (["optim.tables.name=helen", "optim.tables.lr=0.5"], 0.5),
    ],
)
def test_adam_has_a_rate_of_its_own(job_file: Path, edits: list[str], lr: float) -> None:
    assert load_job(job_file, edits).optim.tables.lr == lr


def test_a_share_of_less_than_a_sample_is_refused(job_file: Path) -> None:
    edits = ["optim.tables.name=helen", "optim.tables.ascend_fraction=0.01"]
    with pytest.raises(
        ConfigError, match=r"ascend_fraction 0.01 of data.batch_size 64 is less than a sample"
    ):
        load_job(job_file, edits)
