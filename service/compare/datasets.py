"""The datasets of a study that are not there yet: from raw files, of folds of them, or synthetic."""

import shutil
from collections.abc import Iterable

from sparta.service.compare.cells import Folder
from sparta.service.compare.folds import cut
from sparta.service.data.prepare import prepare
from sparta.service.data.spec import load_spec
from sparta.service.data.synth import synth


def prepare_all(folder: Folder, names: Iterable[str]) -> None:
    """Make them, one after the other.

    Raises:
        ConfigError: a bad spec.
        DataError: a raw file is missing, damaged or breaks a rule.
    """
    for name in names:
        of = folder.study.data[name]
        if not of.made or folder.dataset(name).exists():
            continue
        out = folder.dataset(name)
        raw, source = folder.path / "raw" / out.name, of.prepare or ""
        if of.synth:
            synth(raw, rows=of.synth.rows, seed=of.synth.seed)
        spec = load_spec(raw / "prepare.yaml" if of.synth else source)
        if of.fold:
            spec = load_spec(source, cut(spec, of.fold, raw))
        schema = prepare(spec, out)
        shutil.rmtree(raw, ignore_errors=True)
        print(
            f"{out}: {', '.join(f'{split} {rows:,}' for split, rows in schema.splits.items())} rows",
            flush=True,
        )
