"""How fast is a whole training? Beside a plain TorchRec loop over the same model, and Helen beside its authors' way.

The speed shape (benchmarks/shape.py), one process. Ours is `sparta train` as users run it: Parquet from disk, shuffled
and checked, metrics served, history written, and beside the plain loop a checkpoint within some 500 steps, stall and
writing counted. The plain loop takes ready batches from memory in turn: DistributedModelParallel with TorchRec's own
planner and FBGEMM's row-wise Adagrad, dense Adam, no metrics, no checks. The authors' way is a dense table and the
published algorithm, `sparta.optim.Helen(variant="authors")`, in fp32, whose dense part ascends too. Both run without
the settings of memory and threads that our launcher makes.

Every figure is a process of its own, and those of a pair take turns; prints one JSON object: examples a second of
each and the ratios of the pairs. Where the other side is far slower than it is known to be on this kind of machine, or
the authors' way far faster, something is wrong with the machine or with us, and the comparison is `void`.

    python benchmarks/loops.py [--pairs 9] [--steps N] [--only torchrec|helen|helen_10M]
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import shape as speed
from measured import as_a_stranger, circumstances, cores, ratio
from shape import FIELDS, HIDDEN, MILLION, NAMES, WARM, Shape, ids

DIM = Shape().dim


# --- the plain loop -----------------------------------------------------------------------------------------


class Plain(nn.Module):
    """DeepFM as TorchRec's own examples are written."""

    def __init__(self, each: int) -> None:
        super().__init__()
        from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

        # The first-order weight is one more column of a row, and FBGEMM wants multiples of 4: with a collection of
        # its own for it the loop took 1.2 times as long.
        configs = [
            EmbeddingBagConfig(num_embeddings=each, embedding_dim=DIM + 4, name=f"t_{n}", feature_names=[n])
            for n in NAMES
        ]
        self.tables = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
        layers: list[nn.Module] = []
        for width, units in zip((FIELDS * DIM, *HIDDEN), HIDDEN, strict=False):
            layers += [nn.Linear(width, units), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, sparse: Any) -> Tensor:
        rows = self.tables(sparse).values().view(-1, FIELDS, DIM + 4)
        fields, first = rows[:, :, :DIM], rows[:, :, DIM].sum(1, keepdim=True)
        second = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True)
        logits: Tensor = self.mlp(fields.flatten(1)) + first + second + self.bias
        return logits


def plain(shape: Shape, precision: str, steps: int) -> float:
    """Examples a second of a loop over batches in memory."""
    import torch.distributed as dist
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec import KeyedJaggedTensor
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 1e-3}
    module = DistributedModelParallel(
        Plain(shape.each),
        device=torch.device("cpu"),
        sharders=[EmbeddingBagCollectionSharder(fused_params=fused)],
    )
    dense = [p for name, p in module.named_parameters() if ".mlp." in name or name.endswith("bias")]
    optimizer = torch.optim.Adam(dense, lr=1e-3)
    rng, given = np.random.default_rng(1), []
    for _ in range(16):
        sparse = KeyedJaggedTensor(
            keys=list(NAMES),
            values=torch.from_numpy(ids(rng, shape.batch, shape).reshape(-1)),
            lengths=torch.ones(FIELDS * shape.batch, dtype=torch.int32),
        )
        given.append((sparse, torch.from_numpy(rng.integers(0, 2, (shape.batch, 1)).astype(np.float32))))

    def step(number: int) -> None:
        sparse, labels = given[number % len(given)]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = module(sparse)
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(logits.float(), labels))
        optimizer.step()

    return shape.batch * timed(step, steps)


# --- the authors' way ---------------------------------------------------------------------------------------


class Dense(nn.Module):
    """DeepFM over dense tables of plain PyTorch."""

    def __init__(self, each: int) -> None:
        super().__init__()
        self.deep = nn.ModuleList(nn.Embedding(each, DIM) for _ in NAMES)
        self.wide = nn.ModuleList(nn.Embedding(each, 1) for _ in NAMES)
        for table in (*self.deep, *self.wide):
            # As theirs and ours. PyTorch's N(0, 1) makes logits of 100, whose gradients are denormal: matrices take
            # four times as long.
            nn.init.normal_(table.weight, std=1e-4)
        layers: list[nn.Module] = []
        for width, units in zip((FIELDS * DIM, *HIDDEN), HIDDEN, strict=False):
            layers += [nn.Linear(width, units), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))

    def forward(self, ids_BF: Tensor) -> Tensor:
        fields = torch.stack([table(ids_BF[:, f]) for f, table in enumerate(self.deep)], dim=1)
        first = torch.cat([table(ids_BF[:, f]) for f, table in enumerate(self.wide)], dim=1).sum(
            1, keepdim=True
        )
        second = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True)
        logits: Tensor = self.mlp(fields.flatten(1)) + first + second
        return logits


def authors(shape: Shape, steps: int) -> float:
    """Examples a second of the published algorithm."""
    from sparta.optim import Helen

    model = Dense(shape.each)
    helen = Helen(model, lr=1e-3, rho=0.05, xi=0.3, perturb_dense=True, variant="authors")
    rng = np.random.default_rng(1)
    given = [
        (
            torch.from_numpy(ids(rng, shape.batch, shape).T.copy()),
            torch.from_numpy(rng.integers(0, 2, (shape.batch, 1)).astype(np.float32)),
        )
        for _ in range(8)
    ]

    def step(number: int) -> None:
        batch, labels = given[number % len(given)]

        def closure() -> Tensor:
            helen.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(model(batch), labels)
            torch.autograd.backward(loss)
            return loss

        helen.step(closure)

    return shape.batch * timed(step, steps, warm=2)


def timed(step: Callable[[int], None], steps: int, warm: int = WARM) -> float:
    """Steps a second, after the first `warm`."""
    for number in range(warm):
        step(number)
    began = time.perf_counter()
    for number in range(warm, steps):
        step(number)
    return (steps - warm) / (time.perf_counter() - began)


# --- pairs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What stands beside what."""

    group: str
    title: str
    rows: int
    """Of all tables together."""
    tables: dict[str, Any]
    """How our tables learn."""
    precision: str
    theirs: str
    their_steps: int
    valid: tuple[float, float] = (0, math.inf)
    """Examples a second of theirs outside of which nothing that is asked in this group has an answer."""
    steps: int = 120
    save_every: int | None = None


ADAGRAD, HELEN = {"name": "rowwise_adagrad"}, {"name": "helen", "rho": 0.01}
NEAR = 0.75
"""How near their way has to come to what their own code was measured at on this kind of machine: so many times it."""


def beside_plain(precision: str, least: float) -> Question:
    """With a save in each training of ours."""
    title, valid = f"plain TorchRec loop, {precision}", (least, math.inf)
    return Question(
        "torchrec", title, MILLION, ADAGRAD, precision, "plain", 120, valid, steps=560, save_every=500
    )


def beside_authors(group: str, millions: int, measured: int, their_steps: int) -> Question:
    """Where their code was measured at so many examples a second."""
    title, rows = f"Helen in bf16 to the authors' way, {millions}M rows", millions * MILLION
    valid = (NEAR * measured, measured / NEAR)
    return Question(group, title, rows, HELEN, "bf16", "authors", their_steps, valid)


QUESTIONS = (
    beside_plain("fp32", 40_000),
    beside_plain("bf16", 0),
    beside_authors("helen", 1, 14_600, 14),
    beside_authors("helen_10M", 10, 1_300, 5),
)


def pair(
    question: Question, data: Path, shape: Shape, steps: int | None, *, ours_first: bool
) -> tuple[float, float]:
    """Examples a second of ours and of theirs."""

    def one_of_ours() -> float:
        return speed.train(
            data,
            shape,
            question.tables,
            precision=question.precision,
            steps=steps or question.steps,
            save_every=question.save_every,
        )

    def one_of_theirs() -> float:
        numbers = [str(shape.rows), str(shape.batch), str(question.their_steps)]
        command = [sys.executable, __file__, "--child", question.theirs, question.precision, *numbers]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=as_a_stranger())
        return float(done.stdout.split()[-1])

    if ours_first:
        return one_of_ours(), one_of_theirs()
    theirs = one_of_theirs()
    return one_of_ours(), theirs


def answer(question: Question, data: Path, shape: Shape, pairs: int, steps: int | None) -> dict[str, Any]:
    """Medians of interleaved pairs, and the spread of their ratios."""
    mine, theirs = zip(
        *(pair(question, data, shape, steps, ours_first=turn % 2 == 0) for turn in range(pairs)), strict=True
    )
    return {
        "ours": round(statistics.median(mine)),
        "theirs": round(statistics.median(theirs)),
        "ratio": ratio(mine, theirs),
    }


def void(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What has no answer."""
    asked = [q for q in QUESTIONS if q.title in found]
    wrong = {q.group for q in asked if not q.valid[0] <= found[q.title]["theirs"] <= q.valid[1]}
    return [q.title for q in asked if q.group in wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, help="of ours; default: as many as each question asks for")
    parser.add_argument("--batch", type=int, default=Shape().batch)
    parser.add_argument("--only", choices=sorted({question.group for question in QUESTIONS}))
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps is not None and options.steps <= WARM:
        parser.error(f"--steps {options.steps}: the first {WARM} do not count; give more")
    if options.child:
        kind, precision, *numbers = options.child
        rows, batch, steps = map(int, numbers)
        shape = Shape(rows=rows, batch=batch)
        torch.set_num_threads(cores())
        print(authors(shape, steps) if kind == "authors" else plain(shape, precision, steps))
        return
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for question in QUESTIONS:
            if options.only in (None, question.group):
                shape = Shape(rows=question.rows, batch=options.batch)
                steps = options.steps or question.steps
                data = Path(name) / f"{question.rows}-{steps}"
                if not data.exists():
                    speed.write(data, shape, steps)
                found[question.title] = answer(question, data, shape, options.pairs, options.steps)
                print(question.title, found[question.title], file=sys.stderr, flush=True)
    report = {
        "batch": options.batch,
        "steps": {q.title: options.steps or q.steps for q in QUESTIONS if q.title in found},
        "examples_per_second": found,
        "ratios": {title: one.pop("ratio") for title, one in found.items()},
        "void": void(found),
        **circumstances(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
