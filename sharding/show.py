"""A plan as a table for people: per rank and table, where its rows live and the bytes they take."""

from rich import box
from rich.table import Table

from sparta.sharding.human import human
from sparta.sharding.record import Plan


def format_plan(plan: Plan) -> Table:
    """Lines by rank, then by size; each rank ends with its total."""
    shown = Table(
        title=f"{plan.ranks} ranks on {plan.device}, global batch {plan.batch_size:,}",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        collapse_padding=True,
    )
    for title in ("rank", "table", "placement", "rows", "columns"):
        shown.add_column(title, justify="right" if title == "rank" else "left", no_wrap=True)
    for title in ("weights", "optimizer", "buffers", "in all"):
        shown.add_column(title, justify="right", no_wrap=True)
    for rank in range(plan.ranks):
        held = [(table, shard) for table in plan.tables for shard in table.shards if shard.rank == rank]
        held.sort(key=lambda pair: -pair[1].bytes.total)
        for table, shard in held:
            cost = shard.bytes
            shown.add_row(
                str(rank),
                table.name,
                table.sharding,
                f"{shard.rows[0]}:{shard.rows[1]}",
                f"{shard.columns[0]}:{shard.columns[1]}",
                human(cost.weights),
                human(cost.optimizer),
                human(cost.buffers),
                human(cost.total),
            )
        shown.add_row(
            str(rank),
            "(its own slots)",
            *("",) * 5,
            human(plan.received_bytes),
            human(plan.received_bytes),
        )
        sums = [
            sum(getattr(shard.bytes, part) for _, shard in held)
            for part in ("weights", "optimizer", "buffers")
        ]
        sums[2] += plan.received_bytes
        shown.add_row(
            str(rank),
            "total",
            *("",) * 3,
            *(human(part) for part in sums),
            human(plan.rank_bytes(rank)),
            style="bold",
            end_section=True,
        )
    return shown
