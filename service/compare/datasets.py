"""The datasets of a study that are not there yet: from raw files, of folds of them, or synthetic.

Beside a dataset `<name>.raw.json` notes size and time of the files it was made of.
"""

import json
import shutil
from collections.abc import Iterable

from sparta.models.errors import DataError
from sparta.service.compare.cells import Folder
from sparta.service.compare.folds import cut
from sparta.service.data.prepare import prepare
from sparta.service.data.spec import Spec, load_spec
from sparta.service.data.synth import synth
from sparta.service.run import write_atomically


def prepare_all(folder: Folder, names: Iterable[str]) -> None:
    """Make them, one after the other.

    Raises:
        ConfigError: a bad spec.
        DataError: a raw file is missing, damaged or breaks a rule, or has changed since.
    """
    for name in names:
        of, out = folder.study.data[name], folder.dataset(name)
        noted = out.with_name(f"{out.name}.raw.json")
        if of.prepare and out.exists() and noted.exists():
            then, now = json.loads(noted.read_text()), _files(load_spec(of.prepare))
            if changed := [path for path in now if now[path] != then.get(path)]:
                raise DataError(
                    f"data.{name}: {changed[0]} is another than when {out} was prepared; remove {out} to have it "
                    "prepared anew"
                )
        if not of.made or out.exists():
            continue
        raw, source = folder.path / "raw" / out.name, of.prepare or ""
        if of.synth:
            synth(raw, rows=of.synth.rows, seed=of.synth.seed)
        spec = load_spec(raw / "prepare.yaml" if of.synth else source)
        if not of.synth:
            write_atomically(noted, json.dumps(_files(spec), indent=1) + "\n")
        if of.fold:
            spec = load_spec(source, cut(spec, of.fold, raw))
        schema = prepare(spec, out)
        shutil.rmtree(raw, ignore_errors=True)
        print(
            f"{out}: {', '.join(f'{split} {rows:,}' for split, rows in schema.splits.items())} rows",
            flush=True,
        )


def _files(spec: Spec) -> dict[str, list[int]]:
    """Size and time of each raw file; of none where one is gone, which a dataset does not mind."""
    try:
        paths = [path for of_split in spec.paths().values() for path in of_split]
    except DataError:
        return {}
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}
