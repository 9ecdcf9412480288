"""The vocabulary of our dashboards: panels of a few kinds over expressions, variables, and the frame around them.

Built with Grafana's own SDK (requirements-dev.txt), which is needed to write the dashboards, not to show them.
In an expression `@` stands for the selection of job, run and rank on top of a dashboard.
"""

from collections.abc import Sequence
from string import ascii_uppercase

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

CHOSEN = 'name=~"$name",run=~"$run",rank=~"$rank"'
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")

Steps = Sequence[tuple[float, str]]
"""Thresholds: from this value on that colour; below the first it is green."""
Shown = tuple[str, str]
"""An expression and the legend of its series."""
Panel = Builder[model.Panel]
Row = tuple[str, Sequence[Panel]]
"""A heading and what stands under it."""

FULL, HALF, THIRD, SIXTH = 24, 12, 8, 4
"""Widths of a panel, in Grafana's columns."""


def mean(histogram: str, by: str, window: str) -> str:
    """The expression for a histogram's mean in a window, of the chosen ranks."""
    return (
        f"sum by ({by}) (rate(sparta_{histogram}_sum{{@}}[{window}]))"
        f" / sum by ({by}) (rate(sparta_{histogram}_count{{@}}[{window}]))"
    )


def quantile(share: float, histogram: str, by: str, window: str = "$__rate_interval") -> str:
    """The expression for the value below which that share of a histogram's observations lies."""
    return f"histogram_quantile({share}, sum by ({by}, le) (rate(sparta_{histogram}_bucket{{@}}[{window}])))"


def time_share(phase: str, by: str) -> str:
    """The expression for the share of the steps' time that a phase takes."""
    return (
        f'sum by ({by}) (rate(sparta_phase_seconds_sum{{@,phase="{phase}"}}[$__rate_interval]))'
        # Of the steps that were timed, which on a GPU are not all.
        f' / sum by ({by}) (rate(sparta_phase_seconds_sum{{@,phase!~"eval|checkpoint"}}[$__rate_interval]))'
    )


def number(
    title: str,
    text: str,
    unit: str,
    shown: Shown,
    *,
    steps: Steps = (),
    decimals: float | None = None,
    at_end: bool = False,
) -> Panel:
    """The last value of an expression, large; `at_end` asks once, for what counts over the whole time shown."""
    panel = stat.Panel().title(title).description(text).unit(unit).datasource(SOURCE).span(SIXTH).height(4)
    panel.with_target(_query(shown, instant=at_end)).thresholds(_thresholds(steps))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.color_mode(look.BigValueColorMode.VALUE).graph_mode(look.BigValueGraphMode.AREA)
    panel.text_mode(look.BigValueTextMode.AUTO)
    return panel if decimals is None else panel.decimals(decimals)


def lines(
    title: str,
    text: str,
    unit: str,
    *shown: Shown,
    steps: Steps = (),
    stacked: bool = False,
    logarithmic: bool = False,
    from_zero: bool = False,
    width: int = THIRD,
) -> Panel:
    """Expressions over time; the legend is a table of mean and last values."""
    panel = timeseries.Panel().title(title).description(text).unit(unit).datasource(SOURCE)
    panel.span(width).height(8).line_width(1).show_points(look.VisibilityMode.AUTO)
    panel.fill_opacity(60 if stacked else 0)
    panel.legend(_legend()).tooltip(
        common.VizTooltipOptions().mode(look.TooltipDisplayMode.MULTI).sort(look.SortOrder.DESCENDING)
    )
    for letter, expression in zip(ascii_uppercase, shown, strict=False):
        panel.with_target(_query(expression).ref_id(letter))
    if steps:
        style = common.GraphThresholdsStyleConfig().mode(look.GraphThresholdsStyleMode.DASHED)
        panel.thresholds(_thresholds(steps)).thresholds_style(style)
    if stacked:
        panel.stacking(common.StackingConfig().mode(look.StackingMode.NORMAL).group("A"))
    if logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(look.ScaleDistribution.LOG).log(10))
    return panel.min(0) if from_zero else panel


def bars(title: str, text: str, unit: str, shown: Shown, *, width: int = THIRD) -> Panel:
    """The last values of an expression, one bar a series."""
    panel = bargauge.Panel().title(title).description(text).unit(unit).datasource(SOURCE)
    panel.span(width).height(8).min(0).with_target(_query(shown, instant=True)).thresholds(_thresholds(()))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.orientation(look.VizOrientation.HORIZONTAL).display_mode(look.BarGaugeDisplayMode.BASIC)
    return panel


def density(title: str, text: str, unit: str, expression: str, *, width: int = THIRD) -> Panel:
    """How a histogram moves over time."""
    panel = heatmap.Panel().title(title).description(text).datasource(SOURCE).span(width).height(8)
    panel.with_target(_query((expression, "{{le}}")).format(PromQueryFormat.HEATMAP))
    panel.y_axis(heatmap.YAxisConfig().unit(unit))
    return panel.color(
        heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    )


def records(title: str, text: str, expression: str, *, value: str) -> Panel:
    """The labels of an expression's series as the columns of a table; `value` is the heading of the last one."""
    panel = table.Panel().title(title).description(text).unit("short").datasource(SOURCE).span(FULL).height(6)
    panel.with_target(_query((expression, ""), instant=True).format(PromQueryFormat.TABLE))
    organise = {"excludeByName": {"Time": True}, "renameByName": {"Value": value}}
    return panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=organise))


def board(title: str, uid: str, text: str, rows: Sequence[Row], *, tables: bool = False) -> model.Dashboard:
    """A dashboard with its variables; `tables` adds one to choose tables by."""
    made = dashboard.Dashboard(title).uid(uid).description(text).tags(["sparta"]).editable()
    made.time("now-3h", "now").refresh("30s").timezone("browser").tooltip(model.DashboardCursorSync.CROSSHAIR)
    made.link(
        dashboard.DashboardLink("sparta")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags(["sparta"])
        .include_vars(True)
        .keep_time(True)
    )
    made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    made.with_variable(_choice("name", "Job", "sparta_build_info"))
    made.with_variable(_choice("run", "Run", 'sparta_build_info{name=~"$name"}'))
    made.with_variable(_choice("rank", "Rank", 'sparta_build_info{name=~"$name",run=~"$run"}'))
    if tables:
        made.with_variable(_choice("table", "Table", 'sparta_table_rows{name=~"$name",run=~"$run"}'))
    for heading, panels in rows:
        made.with_row(dashboard.Row(heading))
        for panel in panels:
            made.with_panel(panel)
    finished = made.build()
    for place, shown in enumerate(finished.panels or [], 1):
        shown.id_val = place  # so that a link to a panel holds
    return finished


def _query(shown: Shown, *, instant: bool = False) -> prometheus.Dataquery:
    expression, legend = shown
    query = prometheus.Dataquery().expr(expression.replace("@", CHOSEN)).legend_format(legend).ref_id("A")
    return query.instant() if instant else query.range()


def _choice(name: str, label: str, metric: str) -> dashboard.QueryVariable:
    """Values of a label, any number of them. `.*` also takes series that lack it: `up` has no rank."""
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE)
    variable.query({"query": f"label_values({metric}, {name})", "refId": name})
    variable.multi(True).include_all(True).all_value(".*")
    variable.current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.NATURAL_ASC)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    marks = [model.Threshold(value=None, color="green")]
    marks += [model.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(marks)


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().show_legend(True).display_mode(look.LegendDisplayMode.TABLE)
    return legend.placement(look.LegendPlacement.BOTTOM).calcs(["mean", "lastNotNull"])
