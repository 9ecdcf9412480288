"""`sparta checkpoint list` and `verify` say of every folder what it is."""

import shutil
from pathlib import Path

import pytest

from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.inspect import ago, entries
from sparta.service.checkpoint.storage import Storage
from tests.service.checkpoint.test_manifest import FILES, write
from tests.service.refusal import refused, sparta


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """One folder of every kind."""
    made = Storage(tmp_path)
    for step, best in ((10, None), (20, 10), (30, 10)):
        write(made, step, best_step=best)
    (tmp_path / "step-000000040").mkdir()  # a save that was killed
    shutil.copytree(tmp_path / "step-000000020", tmp_path / "damaged-step-000000015")
    (tmp_path / "step-000000020" / "__1_0.distcp").write_bytes(b"abd")
    (tmp_path / "notes.txt").touch()
    return made


def test_every_folder_is_named_in_the_order_of_its_step(storage: Storage) -> None:
    assert [(entry.name, entry.state, entry.best) for entry in entries(storage)] == [
        ("step-000000010", "complete", True),
        ("damaged-step-000000015", "set aside", False),
        ("step-000000020", "complete", False),
        ("step-000000030", "complete", False),
        ("step-000000040", "not complete", False),
    ]
    size = sum(map(len, FILES.values()))
    assert [(entry.step, entry.bytes) for entry in entries(storage) if entry.state == "complete"] == [
        (10, size),
        (20, size),
        (30, size),
    ]


def test_damage_is_found_only_by_reading_every_byte(storage: Storage) -> None:
    found = {entry.step: entry for entry in entries(storage, every_byte=True) if entry.step}
    assert [found[step].state for step in (10, 20, 30)] == ["complete", "damaged", "complete"]
    assert found[20].problem == "__1_0.distcp does not match its checksum"


def test_a_newest_without_a_manifest_hides_nothing(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "step-000000030" / disk.MANIFEST).unlink()
    found = {entry.name: entry for entry in entries(storage)}
    assert found["step-000000010"].best
    assert found["step-000000030"].state == "damaged"
    assert f"{disk.MANIFEST} is missing" in (found["step-000000030"].problem or "")


def test_where_there_is_nothing_there_are_no_entries(tmp_path: Path) -> None:
    assert entries(Storage(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0, "0 s ago"),
        (119, "119 s ago"),
        (120, "2 min ago"),
        (7199, "120 min ago"),
        (7200, "2 h ago"),
        (172800, "2 days ago"),
    ],
)
def test_a_time_is_told_as_people_do(seconds: float, said: str) -> None:
    assert ago(1000.0, 1000.0 + seconds) == said


@pytest.fixture
def run(learned: Path, tmp_path: Path) -> Path:
    """A copy of a run that may be damaged."""
    shutil.copytree(learned, tmp_path / "run")
    return tmp_path / "run"


def cells(out: str) -> dict[str, list[str]]:
    """The rows of the table by the name of the checkpoint."""
    return {line.split()[0]: line.split() for line in out.splitlines() if "step-" in line}


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_the_table_has_a_line_for_each(run: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    (run / "checkpoints" / "step-000000999").mkdir()
    code, out, err = sparta("checkpoint", verb, run)
    assert (code, err) == (0, "")
    rows = cells(out)
    assert sorted(rows) == sorted(path.name for path in (run / "checkpoints").iterdir())
    assert rows["step-000000999"][1:] == ["-", "-", "-", "-", "-", "not", "complete"]
    for name, row in rows.items():
        if name == "step-000000999":
            continue
        manifest = disk.read_manifest(Storage(run / "checkpoints"), name)
        assert row[1:3] == [str(manifest.step), f"{manifest.bytes:,}"]
        assert row[5] == "2"  # ranks
    best = disk.read_manifest(Storage(run / "checkpoints"), "step-000000048").training["best_step"]
    assert [name for name, row in rows.items() if row[-1] == "best"] == [disk.name_of(best)]


def test_verify_ends_with_the_damage_and_the_way_out(run: Path) -> None:
    path = run / "checkpoints" / "step-000000048" / "__1_0.distcp"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert sparta("checkpoint", "list", run)[0] == 0
    code, out, err = sparta("checkpoint", "verify", run)
    assert (code, "damaged" in out) == (3, True)
    assert err == (
        f"error: {path.parent}: __1_0.distcp does not match its checksum; "
        "`sparta train --resume` sets it aside and takes the one before\n"
    )


def test_export_says_what_it_wrote_and_evaluate_takes_it(run: Path, tmp_path: Path) -> None:
    code, out, err = sparta("checkpoint", "export", run, "--out", tmp_path / "out", "--checkpoint", "last")
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path}/out: step-000000048 of {run}, ")
    assert out.endswith(" bytes of weights in safetensors files\n")
    scored = [
        sparta("evaluate", folder, "--json", *more)[:2]
        for folder, more in ((run, ["--checkpoint", "last"]), (tmp_path / "out", []))
    ]
    assert scored[0][0] == 0
    assert scored[0] == scored[1]


def test_mistakes_are_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for words, code, said in (
        (["list", tmp_path / "nowhere"], 2, "nowhere: holds no job.yaml, so it is no run directory"),
        (["export", run], 2, "--out is missing; name the folder to make"),
        (
            ["export", run, "--out", tmp_path / "taken"],
            2,
            "taken: exists already; give another --out or remove",
        ),
        (["mend", run], 2, "argument what: invalid choice: 'mend'"),
    ):
        assert said in refused(tmp_path, "checkpoint", *words, code=code)
    shutil.rmtree(run / "checkpoints")
    for what in (["list", run], ["verify", run], ["export", run, "--out", tmp_path / "out"]):
        said = refused(tmp_path, "checkpoint", *what, code=3)
        assert said.startswith(f"{run}/checkpoints: holds no ")
        assert said.endswith("train first with `sparta train`")
