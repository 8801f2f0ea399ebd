"""How a panel of ours becomes one of Grafana's: unit, description, thresholds and queries, each in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as words
from grafana_foundation_sdk.models import dashboard as models

WIDTHS = {"series": 8, "bars": 8, "number": 4}  # of 24
HEIGHTS = {"series": 8, "bars": 8, "number": 4}
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL and how its series are called. `$ns` in it is the chosen namespaces."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture. `warn` and `bad`: from where it is yellow and red (`falling`: below which)."""

    title: str
    about: str
    unit: str
    queries: Sequence[Query]
    warn: float | None
    bad: float
    falling: bool = False
    kind: Literal["series", "bars", "number"] = "series"
    stacked: bool = False


Rows = Sequence[tuple[str, Sequence[Panel]]]  # each row has a name


def quantiles(metric: str, by: str = "", window: str = "2m") -> list[Query]:
    """p50, p95 and p99 of a histogram, for each value of the label `by`, if there is one."""
    labels = f"le, {by}" if by else "le"
    return [
        Query(
            f"histogram_quantile({quantile / 100}, sum by ({labels}) (rate({metric}_bucket{{$ns}}[{window}])))",
            f"p{quantile}" + (f" {{{{{by}}}}}" if by else ""),
        )
        for quantile in (50, 95, 99)
    ]


def rate(counter: str, by: str = "", window: str = "1m") -> str:
    """How often a second, for each value of the labels `by`."""
    return f"sum by ({by}) (rate({counter}{{$ns}}[{window}]))"


def built(uid: str, title: str, about: str, rows: Rows) -> str:
    """The dashboard's JSON."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["streamchat"])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(namespaces())
    )
    for name, panels in rows:
        made = made.with_row(dashboard.Row(name))
        for panel in panels:
            made = made.with_panel(grafana(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def namespaces() -> dashboard.QueryVariable:
    """Which of several StreamChats of a cluster; outside of Kubernetes there is none, and all match."""
    return (
        dashboard.QueryVariable("namespace")
        .label("Namespace")
        .query("label_values(streamchat_build_info, namespace)")
        .datasource(DATASOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def grafana(panel: Panel) -> timeseries.Panel | bargauge.Panel | stat.Panel:
    """The panel as Grafana's."""
    made = new(panel)
    made = (
        made.title(panel.title)
        .description(panel.about)
        .unit(panel.unit)
        .datasource(DATASOURCE)
        .thresholds(thresholds(panel))
        .color_scheme(color(panel))
        .span(WIDTHS[panel.kind])
        .height(HEIGHTS[panel.kind])
        .min(0)
    )
    for number, query in enumerate(panel.queries):
        expr = query.expr.replace("$ns", 'namespace=~"$namespace"')
        target = prometheus.Dataquery().expr(expr).legend_format(query.legend).ref_id("ABCDEFGH"[number])
        made = made.with_target(target if panel.kind == "series" else target.instant())
    return made


def new(panel: Panel) -> timeseries.Panel | bargauge.Panel | stat.Panel:
    """An empty one of its kind."""
    last = common.ReduceDataOptions().calcs(["lastNotNull"])
    if panel.kind == "bars":
        return bargauge.Panel().orientation(words.VizOrientation.HORIZONTAL).reduce_options(last)
    if panel.kind == "number":
        return stat.Panel().graph_mode(words.BigValueGraphMode.NONE).reduce_options(last)
    series = timeseries.Panel().fill_opacity(30 if panel.stacked else 8).line_width(1)
    if panel.stacked:
        series = series.stacking(common.StackingConfig().mode(words.StackingMode.NORMAL))
    line = common.GraphThresholdsStyleConfig().mode(words.GraphTresholdsStyleMode.DASHED)
    return series.thresholds_style(line)


def thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    """Green, yellow and red, from the lowest value on."""
    marks = [(panel.warn, "yellow"), (panel.bad, "red")]
    if panel.falling:
        marks = [(None, "red"), (panel.bad, "yellow"), (panel.warn, "green")]
    else:
        marks = [(None, "green"), *marks]
    first, *rest = marks
    steps = [models.Threshold(*first), *(models.Threshold(*mark) for mark in rest if mark[0] is not None)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def color(panel: Panel) -> dashboard.FieldColor:
    """Lines by their name, numbers and bars by their thresholds."""
    by_name, by_value = models.FieldColorModeId.PALETTE_CLASSIC, models.FieldColorModeId.THRESHOLDS
    return dashboard.FieldColor().mode(by_name if panel.kind == "series" else by_value)
