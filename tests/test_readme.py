"""The README's examples run and its tables name what is there."""

import re
from pathlib import Path
from typing import Any

import yaml

from sparta.launcher.cli import VERBS
from sparta.models.embedding import Inputs
from sparta.service.compare.study import Study
from sparta.service.config import Job, parse_job
from sparta.service.data.spec import Spec
from tests.models import toys

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced code of a language, without the indentation of the list it stands in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def rows(title: str) -> list[list[str]]:
    """Cells of the table below a heading."""
    section = README.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_spec_the_job_and_the_study_are_accepted() -> None:
    spec, job, study = map(yaml.safe_load, blocks("yaml"))
    assert Spec.model_validate(spec).labels == ("click",)
    assert parse_job(job, "README").name == "clicks"
    assert Study.model_validate(study).first == "adam"


def test_the_model_of_ones_own_runs() -> None:
    names: dict[str, Any] = {}
    (code,) = blocks("python")
    exec(code, names)
    schema = toys.toy_schema()
    model = names["Mine"](Inputs(schema, 8))
    toys.materialise(model, seed=1)
    assert model(toys.toy_batch(schema, 5, seed=2)).shape == (5, 1)


def test_every_verb_is_in_the_table_of_commands() -> None:
    told = {cells[0].strip("`").split()[1] for cells in rows("Commands")}
    assert told == set(VERBS)


def test_every_key_in_the_table_of_the_job_file_is_one() -> None:
    known = set()

    def walk(section: type, path: str) -> None:
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            known.add(f"{path}{name}")
            for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(inner, "model_fields"):
                    walk(inner, f"{path}{name}." if inner is not Job else "")

    walk(Job, "")
    known |= {key.replace("tables.", "tables.<name>.") for key in known}
    for cells in rows("The job file"):
        for text in re.findall(r"`([^`]*)`", cells[0]):
            head, _, inner = text.partition(": {")
            names = [f"{head}.{key.strip()}" for key in inner.rstrip("}").split(",")] if inner else [head]
            for name in names:
                plain = name.replace(".<table>", "")
                assert plain in known, name


def test_it_counts_the_bugs_that_are_planted() -> None:
    from tests.mutate import BUGS

    assert f"{len(BUGS)} one-line bugs" in README


def test_every_file_it_links_to_is_there() -> None:
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        path, _, anchor = target.partition("#")
        assert (root / path).exists(), target
        headings = re.findall(r"^#+ (.*)$", (root / path).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target
