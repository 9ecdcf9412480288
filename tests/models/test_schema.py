"""The schema survives a round trip, refuses what is not one, and needs no torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from sparta.models.errors import DataError
from sparta.models.schema import Feature, Schema, load_schema
from tests.models.toys import toy_schema


def test_a_schema_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    schema = toy_schema(labels=2)
    schema.save(tmp_path)
    assert load_schema(tmp_path) == schema


def test_a_feature_is_found_by_name() -> None:
    schema = toy_schema()
    assert schema.feature("C2") == Feature(name="C2", rows=11)
    with pytest.raises(KeyError):
        schema.feature("C9")


def test_a_column_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="'C1' is named twice"):
        Schema(dense=("C1",), sparse=(Feature(name="C1", rows=2),), labels=("y",), splits={})


@pytest.mark.parametrize(
    "text,message",
    [
        (None, "holds no schema.json"),
        ("{", "not readable as JSON"),
        ("[]", "dataset format None"),
        ('{"format": 0}', "dataset format 0, this sparta reads 1; run"),
        ('{"format": 99}', "dataset format 99, this sparta reads 1; update sparta or run"),
        ('{"format": 1}', "sparse: Field required"),
        ('{"format": 1, "sparse": [], "labels": ["y"], "splits": {}, "colour": 1}', "colour: Extra inputs"),
    ],
)
def test_a_broken_schema_is_one_line_with_the_file_and_the_way_out(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "schema.json").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        load_schema(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "sparta prepare" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such dataset"):
        load_schema(tmp_path / "nowhere")


def test_the_schema_and_the_errors_load_no_torch() -> None:
    code = "import sys, sparta.models.schema, sparta.models.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
