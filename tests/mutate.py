"""Applies one-line bugs to a copy of the project; each must turn a named law red.

    python -m tests.mutate [NAME ...]

A law that no bug can break says nothing. Prints a line a bug; exits with 1 if one goes unnoticed, and with 2 if a
bug does not apply any more because the line it changes is gone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("launcher", "models", "optim", "service", "sharding")
LAWS = "tests/sharding/rows/test_laws.py"
STEP = "tests/sharding/rows/test_step.py"
PASSES = "tests/sharding/rows/test_passes.py"
DECAY = "tests/sharding/rows/test_decay.py"


@dataclass(frozen=True)
class Bug:
    """One line that somebody might get wrong."""

    name: str
    file: str
    right: str
    wrong: str
    law: str
    """The test that must fail."""


BUGS = [
    Bug(
        "N* of each shard instead of the whole table",
        "sharding/rows/tables.py",
        "        if ranks() > 1 and len(self.names):\n",
        "        if ranks() > 99:\n",
        f"{LAWS}::test_frequencies_set_the_radius[row_wise]",
    ),
    Bug(
        "the norm of a column shard instead of the row's",
        "sharding/rows/tables.py",
        '[name for name in self.names if self.optimizers[name].rule == "helen"]',
        "[]",
        f"{LAWS}::test_plan_invariance_over_20_steps[column_wise-sgd-2]",
    ),
    Bug(
        "row-wise Adagrad's mean over the columns of a shard",
        "sharding/rows/tables.py",
        '[name for name in self.names if self.optimizers[name].steps_by == "rowwise_adagrad"]',
        "[]",
        f"{LAWS}::test_plan_invariance_over_20_steps[column_wise-rowwise_adagrad-2]",
    ),
    Bug(
        "data_parallel occurrences counted once a rank",
        "sharding/rows/replicas.py",
        "index_add_(0, where, both[1])",
        "index_add_(0, where, both[1] * ranks())",
        f"{LAWS}::test_plan_invariance_to_the_bit_with_dyadic_gradients[data_parallel-2]",
    ),
    Bug(
        "data_parallel gradients counted W times in a shared norm",
        "sharding/rows/tables.py",
        "if not call.learner.replicated or rank() == 0:",
        "if True:",
        f"{LAWS}::test_plan_invariance_over_20_steps[data_parallel-sgd-2]",
    ),
    Bug(
        "data_parallel gradients summed, not averaged, over the ranks",
        "sharding/rows/replicas.py",
        "total(gradient).div_(ranks())",
        "total(gradient)",
        f"{LAWS}::test_plan_invariance_to_the_bit_with_dyadic_gradients[data_parallel-2]",
    ),
    Bug(
        "ids that are one beyond their table let through",
        "sharding/rows/check.py",
        "wrong |= ids[i] >= rows[feature]",
        "wrong |= ids[i] > rows[feature]",
        "tests/sharding/rows/test_check.py::test_what_is_within_passes_and_one_that_is_not_is_named",
    ),
    Bug(
        "ids de-duplicated before they are counted",
        "sharding/rows/call.py",
        "        return self.learner.kernels.touch(self.learner.group, self.bags, self.learner.stamps)\n",
        "        found = self.learner.kernels.touch(self.learner.group, self.bags, self.learner.stamps)\n"
        "        return type(found)(found.rows, found.tables, found.counts.clamp(max=1), found.bounds, "
        "found.packed, found.private)\n",
        f"{LAWS}::test_frequencies_set_the_radius[table_wise]",
    ),
    Bug(
        "restore by subtracting what was added",
        "sharding/rows/tables.py",
        "                self._ascended.append((call, learner.perturb(one, scale, step=self.steps + 1)))\n",
        "                saved = learner.perturb(one, scale, step=self.steps + 1)\n"
        "                dims = learner.group.layout.dims[one.touched.tables]\n"
        "                added = scale.repeat_interleave(dims) * one.sum.gradient\n"
        "                moved = (saved + added.float()) - added.float()\n"
        "                self._ascended.append((call, moved))\n",
        f"{LAWS}::test_restored_weights_are_those_before_the_ascent_to_the_bit[row_wise]",
    ),
    Bug(
        "occurrences weighted by the per-sample weights",
        "optim/rows/plain.py",
        "        return Touched(rows, tables, counts, bounds, packed, slots)\n",
        "        if bags.weights is not None:\n"
        "            sums = torch.zeros(len(rows), dtype=torch.float64)\n"
        "            counts = sums.index_add_(0, slots, bags.weights.double()).long()\n"
        "        return Touched(rows, tables, counts, bounds, packed, slots)\n",
        "tests/optim/rows/test_plain.py::test_every_touched_row_stands_once_with_its_occurrences",
    ),
    Bug(
        "moments of untouched rows decayed",
        "sharding/rows/tables.py",
        "        self.steps += 1\n",
        "        self.steps += 1\n"
        "        [x.slots.first.mul_(0.9) for x in self.learners if x.slots.first is not None]\n",
        f"{LAWS}::test_untouched_rows_and_their_state_do_not_change_by_a_bit[row_wise]",
    ),
    Bug(
        "occurrences of a refused step kept",
        "sharding/rows/tables.py",
        "        self._end(kept=False)\n",
        "        self._end(kept=True)\n",
        f"{LAWS}::test_a_step_that_is_not_finite_leaves_everything_as_it_was[row_wise]",
    ),
    Bug(
        "each rank decides for itself whether a step is finite",
        "sharding/rows/tables.py",
        "        bad = total((~finite).to(torch.float32).reshape(1))\n",
        "        bad = (~finite).to(torch.float32).reshape(1)\n",
        f"{LAWS}::test_a_step_that_is_not_finite_leaves_everything_as_it_was[row_wise]",
    ),
    Bug(
        "the bound of the radius is an upper one",
        "optim/rows/frequency_loops.py",
        "max(min(counts[rows[u]] / most, 1.0), xi[t])",
        "min(min(counts[rows[u]] / most, 1.0), xi[t])",
        f"{LAWS}::test_frequencies_set_the_radius[table_wise]",
    ),
    Bug(
        "SAM's norm without the dense part",
        "sharding/rows/tables.py",
        "            joined[number] += dense[rule]\n",
        "            pass\n",
        f"{STEP}::test_equals_the_one_process_optimizer[sam-2]",
    ),
    Bug(
        "only the second pass must be finite",
        "sharding/rows/step.py",
        "                    first, finite = self._ascend(share or forward, whole=share is not None)\n",
        "                    first, _ = self._ascend(share or forward, whole=share is not None)\n",
        f"{PASSES}::test_each_guard_of_each_pass_refuses_alone[rows-1]",
    ),
    Bug(
        "only the first pass must be finite",
        "sharding/rows/step.py",
        "        finite = finite & last.isfinite() & norm.isfinite() & self.tables.finite(found)\n",
        "        finite = finite if ascending else finite & last.isfinite()\n",
        f"{PASSES}::test_each_guard_of_each_pass_refuses_alone[dense-2]",
    ),
    Bug(
        "rows that are not finite are moved",
        "optim/rows/frequency_loops.py",
        "radius / norm if 0 < norm < np.inf else 0.0",
        "0.0 if norm == 0 else radius / norm",
        f"{PASSES}::test_what_is_not_finite_does_not_ascend",
    ),
    Bug(
        "another dropout mask in the second pass",
        "optim/passes.py",
        "        torch.set_rng_state(self._cpu)\n",
        "",
        f"{PASSES}::test_both_passes_have_one_dropout_mask_and_every_step_its_own",
    ),
    Bug(
        "the second pass sees the share, too",
        "sharding/rows/step.py",
        "                last = self._backward(forward, tables_only=False)\n",
        "                last = self._backward(share or forward, tables_only=False)\n",
        f"{STEP}::test_the_share_sets_the_ascent_and_the_whole_batch_all_else[2-1]",
    ),
    Bug(
        "a pass over all counts in every step",
        "sharding/rows/learner.py",
        "        return count(touched, self.counts, self._advances, self._missing)\n",
        "        self.counts.add_(0)\n"
        "        return count(touched, self.counts, self._advances, self._missing)\n",
        "tests/sharding/rows/test_costs.py::test_no_operator_of_a_step_goes_over_a_table[row_wise-0.0]",
    ),
    Bug(
        "batch norm's running averages move in both passes",
        "sharding/rows/step.py",
        "averages=not ascending or share is not None",
        "averages=True",
        f"{STEP}::test_equals_the_one_process_optimizer[helen-1]",
    ),
    Bug(
        "the loss reported is the second pass's",
        "sharding/rows/step.py",
        "        return first if ascending and share is None else last\n",
        "        return last\n",
        f"{STEP}::test_equals_the_one_process_optimizer[helen-1]",
    ),
    Bug(
        "rows are looked up before they pay",
        "sharding/rows/bags.py",
        "            call.catch_up()\n",
        "            call.touched  # noqa: B018\n",
        f"{DECAY}::test_equals_dense_tables_of_which_every_row_decays[row_wise-1]",
    ),
    Bug(
        "weight decay after the base optimizer",
        "sharding/rows/learner.py",
        "            self.decay.catch_up(one.touched)\n",
        "            pass\n",
        f"{DECAY}::test_equals_dense_tables_of_which_every_row_decays[table_wise-1]",
    ),
    Bug(
        "the ascent decays, too",
        "sharding/rows/learner.py",
        "                self.restore(one.touched, saved)\n                saved = None\n",
        "                pass\n",
        f"{DECAY}::test_equals_dense_tables_of_which_every_row_decays[table_wise-1]",
    ),
    Bug(
        "a refused step decays",
        "sharding/rows/tables.py",
        "        self._largest = self._before\n        self._end(",
        "        [x.decay.advance(x.rates.lr) for x in self.learners if x.decay]\n"
        "        self._largest = self._before\n        self._end(",
        f"{DECAY}::test_equals_dense_tables_of_which_every_row_decays[column_wise-1]",
    ),
    Bug(
        "replicas add the penalty once a rank",
        "sharding/rows/replicas.py",
        "        part = self._reduced(mine, None, ascending=ascending)\n",
        "        part = self._reduced(mine, self.learner.l2, ascending=ascending)\n",
        f"{DECAY}::test_equals_dense_tables_of_which_every_row_decays[data_parallel-2]",
    ),
    Bug(
        "logs that are rounded where the count begins anew",
        "sharding/rows/decay.py",
        "/ -GRAIN).round()",
        "/ -GRAIN)",
        f"{DECAY}::test_being_saved_or_taken_up_changes_no_bit_of_what_rows_owe",
    ),
    Bug(
        "what rows owe is saved as of another count",
        "sharding/rows/decay.py",
        "        self._begin_anew()\n        self._owing = True\n        return",
        "        self._owing = True\n        return",
        f"{DECAY}::test_being_saved_or_taken_up_changes_no_bit_of_what_rows_owe",
    ),
    Bug(
        "weights are saved while rows owe",
        "sharding/rows/bags.py",
        "        self.register_state_dict_pre_hook(lambda *_: self.settle())\n",
        "",
        f"{DECAY}::test_whoever_reads_weights_sees_no_row_that_owes[table_wise-state_dict]",
    ),
    Bug(
        "what rows owed is taken from the weights that are loaded",
        "sharding/rows/bags.py",
        "        self.register_load_state_dict_pre_hook(lambda *_: self.settle())\n",
        "",
        f"{DECAY}::test_whoever_reads_weights_sees_no_row_that_owes[table_wise-load_state_dict]",
    ),
    Bug(
        "partial sums of two frequent rows in one place",
        "optim/rows/gpu_sums.py",
        "(2 * window + leads.to(tl.int64)) * D",
        "(2 * window) * D",
        "tests/optim/rows/test_gpu.py::test_in_the_interpreter",
    ),
    Bug(
        "random bits of a shard's rows, not the table's",
        "optim/rows/gpu_loops.py",
        "(local + tl.load(origins + 2 * table))",
        "local",
        "tests/sharding/rows/test_gpu_kernels.py::test_in_the_interpreter",
    ),
    Bug(
        "another reduction for every table",
        "sharding/rows/tables.py",
        "            dist.all_reduce(largest, op=dist.ReduceOp.MAX)\n",
        "            [dist.all_reduce(one, op=dist.ReduceOp.MAX) for one in largest.split(1)]\n",
        "tests/sharding/rows/test_costs.py::test_collectives_do_not_grow_with_the_tables[row_wise]",
    ),
]


def copy(folder: Path) -> None:
    """The project, and the import namespace as links."""
    for package in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, folder / file)
    (folder / "links" / "sparta").mkdir(parents=True)
    for package in PACKAGES:
        (folder / "links" / "sparta" / package).symlink_to(folder / package)


def fails(law: str, folder: Path) -> bool:
    """Whether the law fails in the copy."""
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'links'}:{folder}", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["NUMBA_CACHE_DIR"] = str(folder / "numba")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", law]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{law}: no such test\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main(names: list[str]) -> int:
    chosen = [bug for bug in BUGS if not names or any(name in bug.name for name in names)]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy(folder)
        for law in sorted({bug.law for bug in chosen}):
            if fails(law, folder):
                raise SystemExit(f"{law} fails without any bug")
        for bug in chosen:
            path = folder / bug.file
            text = path.read_text()
            if bug.right not in text:
                print(f"{bug.name}: {bug.file} has no line {bug.right.strip()!r}", file=sys.stderr)
                return 2
            path.write_text(text.replace(bug.right, bug.wrong, 1))
            noticed = fails(bug.law, folder)
            path.write_text(text)
            unnoticed += not noticed
            print(f"{'noticed  ' if noticed else 'UNNOTICED'}  {bug.name}  ({bug.law})", flush=True)
    print(f"{len(chosen)} bugs, {unnoticed} unnoticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
