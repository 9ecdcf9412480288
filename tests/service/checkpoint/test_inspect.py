"""`sparta checkpoint list` and `verify` say of every folder what it is."""

import json
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from sparta.service.checkpoint import manifest as disk
from sparta.service.checkpoint.inspect import Entry, age, entries
from sparta.service.checkpoint.storage import Storage
from sparta.service.report import show_checkpoints
from sparta.sharding.human import human
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


@pytest.mark.parametrize(
    "content, problem", [(b"ab", "__1_0.distcp has 2 bytes of 3"), (None, "__1_0.distcp is gone")]
)
def test_files_that_are_gone_or_cut_are_found_without_reading_them(
    storage: Storage, tmp_path: Path, content: bytes | None, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step-000000030" / "__1_0.distcp"
    path.unlink() if content is None else path.write_bytes(content)
    monkeypatch.setattr(disk, "sha256", None)
    found = {entry.step: entry for entry in entries(storage) if entry.step}
    assert (found[30].state, found[30].problem) == ("damaged", problem)
    assert (found[20].state, found[20].problem) == ("complete", None)


def test_a_bit_is_missed_only_by_not_reading_every_byte(storage: Storage) -> None:
    found = {entry.step: entry for entry in entries(storage, every_byte=True) if entry.step}
    assert [found[step].state for step in (10, 20, 30)] == ["complete", "damaged", "complete"]
    assert found[20].problem == "__1_0.distcp does not match its checksum"


def test_a_newest_without_a_manifest_hides_nothing(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "step-000000030" / disk.MANIFEST).unlink()
    found = {entry.name: entry for entry in entries(storage)}
    assert found["step-000000010"].best
    assert found["step-000000030"].state == "damaged"
    assert found["step-000000030"].problem == f"{disk.MANIFEST} is missing or broken"


def test_where_there_is_nothing_there_are_no_entries(tmp_path: Path) -> None:
    assert entries(Storage(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (172800, "2 days"),
    ],
)
def test_a_time_is_told_as_people_do(seconds: float, said: str) -> None:
    assert age(1000.0, 1000.0 + seconds) == said


@pytest.fixture
def run(learned: Path, tmp_path: Path) -> Path:
    """A copy of a run that may be damaged."""
    shutil.copytree(learned, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def export(run: Path, tmp_path: Path) -> Path:
    assert sparta("checkpoint", "export", run, "--out", tmp_path / "export")[0] == 0
    return tmp_path / "export"


def flip(place: Path) -> None:
    """One bit, which changes no size."""
    path = place / "__1_0.distcp"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cells(out: str) -> dict[str, list[str]]:
    """The rows of the table by the name of the checkpoint."""
    rows = [re.split(r" {2,}", line.strip()) for line in out.splitlines() if "step-" in line]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("verb", ["list", "verify"])
@pytest.mark.parametrize("columns", ["40", "80", "120"])  # a pipe has no width; rich may think that it has
def test_the_table_has_a_line_for_each(
    run: Path, verb: str, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    (run / "checkpoints" / "step-000000999").mkdir()
    code, out, err = sparta("checkpoint", verb, run)
    assert (code, err) == (0, "")
    rows = cells(out)
    assert sorted(rows) == sorted(path.name for path in (run / "checkpoints").iterdir())
    assert rows["step-000000999"] == ["-", "-", "-", "-", "not complete"]
    for name, row in rows.items():
        if name == "step-000000999":
            continue
        manifest = disk.read_manifest(Storage(run / "checkpoints"), name)
        assert row[:3] == [human(manifest.bytes), f"{manifest.about['seconds']:.1f} s", "2"]
    best = disk.read_manifest(Storage(run / "checkpoints"), "step-000000048").training["best_step"]
    assert [name for name, row in rows.items() if row[-1] == "complete, best"] == [disk.name_of(best)]


def test_long_rows_fit_eighty_columns_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = Entry("step-000000040", "complete", 40, 9 << 40, 9999.4, time.time() - 999 * 86400, 128, True)
    found = [long, Entry("damaged-step-000000040-2", "set aside"), Entry("step-000000050", "not complete")]
    show_checkpoints(found)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert cells(out) == {
        "step-000000040": ["9216.00 GiB", "9999.4 s", "128", "999 days", "complete, best"],
        "damaged-step-000000040-2": ["-", "-", "-", "-", "set aside"],
        "step-000000050": ["-", "-", "-", "-", "not complete"],
    }


def test_json_says_all_that_is_known(run: Path) -> None:
    storage = Storage(run / "checkpoints")
    (run / "checkpoints" / "step-000000999").mkdir()
    flip(run / "checkpoints" / "step-000000048")
    for verb, code in (("list", 0), ("verify", 3)):
        found, out, _ = sparta("checkpoint", verb, run, "--json")
        assert found == code
        assert json.loads(out) == [asdict(entry) for entry in entries(storage, every_byte=verb == "verify")]
    *_, newest, torn = json.loads(out)
    assert (newest["state"], newest["problem"]) == ("damaged", "__1_0.distcp does not match its checksum")
    assert newest["bytes"] == disk.read_manifest(storage, newest["name"]).bytes
    assert (torn["state"], torn["bytes"]) == ("not complete", None)


def test_verify_ends_with_the_damage_and_the_way_out(run: Path) -> None:
    *others, last = sorted((run / "checkpoints").iterdir())
    flip(last)
    assert sparta("checkpoint", "list", run)[0] == 0
    problem = "__1_0.distcp does not match its checksum"
    code, out, err = sparta("checkpoint", "verify", run)
    assert (code, "damaged" in out, f"{last.name}: {problem}" in out) == (3, True, True)
    way_out = f"`sparta train --resume` takes the newest that is complete, {others[-1].name}"
    assert err == f"error: {last}: {problem}; {way_out}\n"
    for path in others:
        (path / disk.MANIFEST).unlink()
    code, out, err = sparta("checkpoint", "verify", run)
    assert (code, f"{others[0].name}: {disk.MANIFEST} is missing or broken" in out) == (3, True)
    assert err == (
        f"error: {last}: {problem} ({len(others) + 1} are damaged); no checkpoint of the run is complete, so train "
        "again with another --run-dir\n"
    )


def test_a_damaged_checkpoint_is_not_exported(run: Path, tmp_path: Path) -> None:
    last = run / "checkpoints" / "step-000000048"
    words = ["checkpoint", "export", run, "--out", tmp_path / "out", "--checkpoint", "last"]
    for damage, problem in (
        (flip, "__1_0.distcp does not match its checksum"),
        (lambda place: (place / "__1_0.distcp").write_bytes(b"cut"), "__1_0.distcp has 3 bytes of "),
        (lambda place: (place / ".metadata").unlink(), ""),
        (lambda place: (place / disk.MANIFEST).unlink(), f"{disk.MANIFEST} is missing or broken"),
        (lambda place: (place / disk.COMMIT).write_text("{"), f"{disk.COMMIT} is missing or broken"),
    ):
        damage(last)  # type: ignore[no-untyped-call]
        said = refused(tmp_path, *words, code=3)
        assert said.startswith(f"{last}: {problem}")
        assert said.endswith("; use another --checkpoint or train again")
        assert said.count(str(last)) == 1


def test_a_missing_manifest_is_one_clear_line(run: Path, data: Path, tmp_path: Path) -> None:
    last = run / "checkpoints" / "step-000000048"
    (last / disk.MANIFEST).unlink()
    problem = f"{last}: {disk.MANIFEST} is missing or broken; "
    said = refused(tmp_path, "evaluate", run, "--checkpoint", "last", code=3)
    assert said == f"{problem}use another --checkpoint or train again"
    job = ["train", run / "job.yaml", "--run-dir", tmp_path / "new"]
    assert refused(tmp_path, *job, "--from", last, code=3) == f"{problem}take another checkpoint"


def test_an_export_is_no_run(export: Path, tmp_path: Path) -> None:
    for what in (["list"], ["verify"], ["export", "--out", tmp_path / "out"]):
        said = refused(tmp_path, "checkpoint", what[0], export, *what[1:], code=2)
        assert said.startswith(f"{export}: is an export, not a run, so it has no checkpoints; name the run")


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
        (["mend", run], 2, "argument what: 'mend' is none of list, verify, export; see `sparta checkpoint"),
        (["lst", run], 2, "'lst' is none of list, verify, export, the nearest is list; see"),
        (["list", run, "--out", "x"], 2, "--out: is for export; leave it out of `sparta checkpoint list`"),
        (
            ["verify", run, "--out", "x"],
            2,
            "--out: is for export; leave it out of `sparta checkpoint verify`",
        ),
        (["list", run, "--checkpoint", "last"], 2, "--checkpoint: is for export; leave it out"),
        (["export", run, "--json"], 2, "--json: is for list and verify; leave it out"),
    ):
        assert said in refused(tmp_path, "checkpoint", *words, code=code)
    shutil.rmtree(run / "checkpoints")
    for what in (["list", run], ["verify", run], ["export", run, "--out", tmp_path / "out"]):
        said = refused(tmp_path, "checkpoint", *what, code=3)
        assert said.startswith(f"{run}/checkpoints: holds no ")
        assert said.endswith("train first with `sparta train`")
