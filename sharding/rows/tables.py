"""All tables of a sharded model that the rows engine steps, and the few collectives of a step.

Per step: one MAX of int64 over all tables (N*), if frequencies are counted; one SUM of norms over all tables
in each pass that needs one; for tables split by columns a SUM of their rows' squares over the ranks that hold
them; one SUM of a flag at the end, by which all ranks agree that every number was finite. Their number does
not grow with the tables.
"""

# K = logical tables of the model in the order of their names, T = tables of one bag, u = touched rows

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.types import ShardingType

from sparta.models.embedding import table_name
from sparta.models.errors import ConfigError
from sparta.sharding.collectives import gather, rank, ranks, total
from sparta.sharding.engines import TableOptimizer
from sparta.sharding.rows.bags import RowsCollection, row_collections
from sparta.sharding.rows.call import Call
from sparta.sharding.rows.learner import Learner, Pass
from sparta.sharding.rows.sample import Sampler
from sparta.sharding.rows.split import SplitTables

OWN = -1.0
"""In place of a norm: the row's own is meant."""


class RowTables:
    """The tables of one model; methods that say so are collective.

    Args:
        module: a model whose EmbeddingBagCollections were sharded for the rows engine.
    """

    def __init__(self, module: nn.Module) -> None:
        self.collections: list[RowsCollection] = list(row_collections(module))
        if not self.collections:
            raise ConfigError(
                "the model has no table of the rows engine; shard it with HelenSharder or engine rows"
            )
        self.learners: list[Learner] = [learner for one in self.collections for learner in one.learners()]
        self.steps = 0
        """Steps taken; a refused one is none."""
        self.optimizers = {
            table_name(name): way.optimizer for one in self.collections for name, way in one.learning.items()
        }
        self.shapes = {
            table_name(config.name): (config.num_embeddings, one.learning[config.name].dim)
            for one in self.collections
            for config in one._embedding_bag_configs
        }
        """Rows and logical columns of whole tables."""
        self.names = sorted(self.optimizers)
        repeated = sum(len(one.learning) for one in self.collections) - len(self.names)
        if repeated:
            raise ConfigError(
                f"two EmbeddingBagCollections have a table of one name, among {', '.join(self.names[:20])}; "
                "give every table a name of its own"
            )
        named = {table_name(name) for one in self.collections for name in one.named}
        for name in sorted(named - set(self.names)):
            near = get_close_matches(name, self.names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(self.names[:20])}"
            raise ConfigError(
                f"the sharder has settings for table {name!r}, which the model does not have{hint}"
            )
        self.device = next((one._device for one in self.collections if one._device), torch.device("cpu"))
        places = {name: place for place, name in enumerate(self.names)}
        self._places = {
            learner: torch.tensor([places[name] for name in learner.names], device=self.device)
            for learner in self.learners
        }
        ordered = [self.optimizers[name] for name in self.names]
        self.rules = {optimizer.rule for optimizer in ordered if optimizer.rule}
        self._carries = torch.tensor([one.frequency != "batch" for one in ordered], device=self.device)
        self._advances = any(one.rule == "helen" and one.frequency != "dataset" for one in ordered)
        over = [_norm_over(name, self.optimizers[name]) for name in self.names]
        self._joint = {name: number for number, name in enumerate(sorted({name for name in over if name}))}
        self._joined = torch.tensor([self._joint.get(name or "", -1) for name in over], device=self.device)
        self._split = SplitTables(
            {
                table_name(name): tuple(sorted(set(placed.ranks)))
                for one in self.collections
                for name, placed in one.module_sharding_plan.items()
                if placed.sharding_type == ShardingType.COLUMN_WISE.value
            }
        )
        self._ascended: list[tuple[Call, Tensor]] = []
        self._counted: list[Call] = []
        self._sampler: Sampler | None = None
        self.recount()

    def recount(self) -> None:
        """Find every table's N* from its counts, all rows of them; collective, for the start and after loading."""
        self._largest = self._over_ranks(
            torch.zeros(len(self.names), dtype=torch.int64, device=self.device),
            [(learner, learner.largest()) for learner in self.learners],
        )
        self._before = self._largest

    # --- a step, in its order ----------------------------------------------------------------------------

    def arrive(self, sparse: KeyedJaggedTensor) -> None:
        """Send a batch's ids to where their rows are, before the model asks for it; collective."""
        for one in self.collections:
            if one.takes(sparse):
                one.arrive(sparse)

    def begin(self) -> None:
        """From here to `step` or `refuse` what the model looks up belongs to the step."""
        self._before = self._largest
        for one in self.collections:
            one.stepping = True

    def leaves(self) -> list[Tensor]:
        """What a backward pass that only wants the tables' gradients goes to."""
        return [leaf for one in self.collections for leaf in one.leaves()]

    def count(self, *, whole: bool) -> None:
        """Add the occurrences of the batch that was looked up last, and find every table's N*; collective.

        Args:
            whole: count the batch that arrived first, of which only a share was looked up.
        """
        calls = [one.first_calls() if whole else one.last_calls() for one in self.collections]
        self._counted = [call for of_one in calls for call in of_one]
        if not self._advances:
            return
        self._largest = self._over_ranks(
            self._largest * self._carries,
            [(call.learner, call.learner.count(call.touched)) for call in self._counted],
        )

    def reduce(self, *, ascending: bool) -> list[tuple[Call, Pass]]:
        """The gradients of the rows that the last pass looked up; collective for replicas."""
        calls = [call for one in self.collections for call in one.last_calls()]
        return [(call, Pass(call.touched, call.reduce(ascending=ascending))) for call in calls]

    def finite(self, passes: Sequence[tuple[Call, Pass]]) -> Tensor:
        """A bool scalar: whether every gradient on this rank is finite."""
        # A square of a float32 fits a float64, so the sums are finite exactly when all gradients are.
        sums = [one.sum.squares.sum() for _, one in passes]
        return (
            torch.stack(sums).isfinite().all()
            if sums
            else torch.ones((), dtype=torch.bool, device=self.device)
        )

    def perturb(self, passes: Sequence[tuple[Call, Pass]], dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move the touched rows uphill; the norms that were shared, by rule. Collective.

        Args:
            dense: by rule (sam, asam), the squared norm of the dense part, which shares their norm.
        """
        norms, shared = self._norms(passes, dense)
        self._split.complete(passes, [name for name in self.names if self.optimizers[name].rule == "helen"])
        for call, one in passes:
            learner = call.learner
            if learner.ascends:
                place = self._places[learner]
                scale = learner.scale(one, self._largest[place], norms[place])
                self._ascended.append((call, learner.perturb(one, scale, step=self.steps + 1)))
                if self._sampler:
                    self._sampler.ascended(call, one, scale, self._largest[place])
        return shared

    def agree(self, finite: Tensor) -> bool:
        """Whether it is true on every rank; collective."""
        bad = total((~finite).to(torch.float32).reshape(1))
        return not bool(bad)

    def restore(self) -> None:
        """Put every perturbed row back, bit for bit."""
        for call, saved in self._ascended:
            call.learner.restore(call.touched, saved)
        self._ascended = []

    def step(self, passes: Sequence[tuple[Call, Pass]]) -> None:
        """Restore the rows and let the base optimizers step; collective. Ends the step."""
        if self._sampler:
            self._sampler.stepped(passes)  # before the squares of column shards are those of whole rows
        self._split.complete(
            passes, [name for name in self.names if self.optimizers[name].steps_by == "rowwise_adagrad"]
        )
        self.steps += 1
        saved = dict(self._ascended)
        for call, rows in self._ascended:
            if not any(call is other for other, _ in passes):  # a share of the batch was perturbed
                call.learner.restore(call.touched, rows)
        for learner in self.learners:
            if learner.decay:
                learner.decay.advance(learner.rates.lr)
        for call, one in passes:
            call.learner.step(one, saved.get(call), step=self.steps)
        self._end(kept=True)

    def refuse(self) -> None:
        """Leave everything as it was before the step."""
        self.restore()
        self._largest = self._before
        self._end(kept=False)

    def set_lr(self, factor: float) -> None:
        """Let every table learn at `factor` times its own rate."""
        for learner in self.learners:
            learner.set_lr(factor)

    # --- for people --------------------------------------------------------------------------------------

    def sample(self) -> Sampler:
        """What the next step will fill, unless it is refused."""
        self._sampler = Sampler(self._tells)
        return self._sampler

    def rows_here(self) -> dict[str, int]:
        """Rows of each table on this rank; their sum over ranks is the table's, whatever the plan."""
        found: dict[str, int] = {}
        for learner in self.learners:
            group = learner.group
            for name, shape, origin in zip(learner.names, group.shapes, group.origins, strict=True):
                if origin[1] == 0 and self._tells(learner):
                    found[name] = shape.rows
        return found

    @staticmethod
    def _tells(learner: Learner) -> bool:
        """Whether this rank tells of a learner's rows; of replicas the first rank does."""
        return not learner.replicated or rank() == 0

    def largest(self) -> dict[str, int]:
        """N* of each table that counts, over all ranks, as of the last step; waits for the device."""
        counted = [self.optimizers[name].rule == "helen" for name in self.names]
        return {
            name: most
            for name, most, told in zip(self.names, self._largest.tolist(), counted, strict=True)
            if told
        }

    def most_frequent(self) -> dict[str, tuple[int, int]]:
        """N* of each table that counts, and the row that has it, the first of a tie; collective."""
        found: dict[str, tuple[int, int]] = {}
        for shards in gather([learner.most_frequent() for learner in self.learners]):
            for shard in shards:
                for name, (count, row) in shard.items():
                    best = found.get(name, (-1, 0))
                    found[name] = max(best, (count, row), key=lambda pair: (pair[0], -pair[1]))
        return dict(sorted(found.items()))

    # --- inside ------------------------------------------------------------------------------------------

    def _end(self, *, kept: bool) -> None:
        if self._advances:
            for call in self._counted:
                call.learner.settle(call.touched, kept=kept)
        self._counted, self._ascended, self._sampler = [], [], None
        for one in self.collections:
            one.forget()

    def _over_ranks(self, start: Tensor, found: Sequence[tuple[Learner, Tensor]]) -> Tensor:
        """(K,) the largest of `start` and what the learners of all ranks found for their tables."""
        largest = start.clone()
        for learner, best in found:
            largest.scatter_reduce_(0, self._places[learner], best, "amax")
        if ranks() > 1 and len(self.names):
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest

    def _norms(
        self, passes: Sequence[tuple[Call, Pass]], dense: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(K,) float64 norm that each table's gradient is divided by, OWN where it is the row's; those of rules."""
        if not self._joint:
            return torch.full((len(self.names),), OWN, dtype=torch.float64, device=self.device), {}
        squares = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        for call, one in passes:
            if not call.learner.replicated or rank() == 0:  # all replicas found the same
                squares += _gathered(
                    self._places[call.learner], squares, call.learner.by_table(one.touched, one.sum.squares)
                )
        total(squares)
        joined = squares.new_zeros(len(self._joint) + 1)  # the last is of the tables without
        joined = _gathered(self._joined % len(joined), joined, squares)
        shared = {rule: self._joint[rule] for rule in dense if rule in self._joint}
        for rule, number in shared.items():
            joined[number] += dense[rule]
        joined = joined.sqrt()
        norms = torch.where(self._joined < 0, OWN, joined[self._joined])
        return norms, {rule: joined[number] for rule, number in shared.items()}


def _gathered(places: Tensor, like: Tensor, values: Tensor) -> Tensor:
    """Sums of the values by place; not index_add_, whose order on a GPU differs from run to run."""
    return (torch.arange(len(like), device=like.device)[:, None] == places).to(values.dtype) @ values


def _norm_over(name: str, optimizer: TableOptimizer) -> str | None:
    """What a table's gradient is divided by the norm of: all tables of its rule, itself, or its rows (None)."""
    if optimizer.rule in ("sam", "asam"):
        return optimizer.rule
    return f"table {name}" if optimizer.rule and optimizer.norm == "table" else None
