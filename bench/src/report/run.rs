//! The sections on one run: what it did, how long operations took, what the processors and the network did meanwhile.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    chart::{Axis, Chart, Mark, Scale, Series, Ticks},
    figures::{Unit, extent, grouped, micros, significant},
    folder::{at, counts_over_time, ends, list, mebibytes, number, over_time, plain, text},
    page::{Drawing, Section, Table},
};

/// CPUs that are drawn, at most: more small charts are looked at by nobody.
const CPUS_MAX: usize = 16;

/// Seconds in the table, at most.
const ROWS_MAX: usize = 600;

/// The percentiles that a run reports: field and name.
pub(super) const PERCENTILES: [(&str, &str); 6] =
    [("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p999", "p99.9"), ("p9999", "p99.99"), ("max", "max")];

/// Where datagrams get lost, from the wire to the session: field and name.
const LAYERS: [(&str, &str); 5] = [
    ("nic", "network card"),
    ("softnet", "softnet backlog"),
    ("socket", "socket buffer"),
    ("port", "port"),
    ("session", "session"),
];

/// The verdicts of a run: kind, which may be missing, and sentence.
pub(super) fn verdicts(run: &Value) -> Vec<(&str, &str)> {
    let of = |verdict| {
        let kind = text(verdict, "/kind").unwrap_or("");
        Some((kind, text(verdict, "/text").or_else(|| verdict.as_str())?))
    };
    list(run, "/verdicts").iter().filter_map(of).collect()
}

/// All sections, without those of which nothing was measured.
pub(super) fn sections(run: &Value, drawing: &mut Drawing) -> Vec<Section> {
    let series = list(run, "/series");
    let sections = [
        throughput(run, series, drawing),
        latency(run, series, drawing),
        processors(run, series, drawing),
        network(run, series, drawing),
        settings(at(run, "/config")),
        seconds(series),
    ];
    sections.into_iter().filter(|section| !section.is_empty()).collect()
}

/// One line.
pub(super) fn line(name: impl Into<String>, colour: usize, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.into(), mark: Mark::Line, colour, points }
}

/// A chart over the time of the run, of those series that have points, divided by `size`.
fn chart_over_time(title: &str, y: (&str, Scale), size: f64, mut series: Vec<Series>) -> Chart {
    series.retain(|one| !one.points.is_empty());
    for point in series.iter_mut().flat_map(|one| &mut one.points) {
        point.1 /= size;
    }
    Chart {
        title: title.to_owned(),
        x: Axis::new("seconds", Scale::Linear),
        y: Axis::new(y.0, y.1),
        series,
        y_max: None,
    }
}

fn throughput(run: &Value, series: &[Value], drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Throughput");
    let total = over_time(series, "/ops_per_sec");
    let unit = Unit::of_rates(extent(total.iter().map(|point| point.1)).map_or(0.0, |(_, most)| most));
    let mut lines = vec![
        line("all", 0, total),
        line("gets", 2, over_time(series, "/gets_per_sec")),
        line("puts", 1, over_time(series, "/puts_per_sec")),
    ];
    if let (Some(offered), Some(&(first, _)), Some(&(last, _))) =
        (number(run, "/offered_ops_per_sec"), lines[0].points.first(), lines[0].points.last())
    {
        let points = vec![(first, offered), (last, offered)];
        lines.push(Series { name: "offered".into(), mark: Mark::Dashed, colour: 5, points });
    }
    let chart = chart_over_time("Operations over time", (unit.name, Scale::FromZero), unit.size, lines);
    section.figures.extend(drawing.chart(&chart));
    let errors = counts_over_time(series, "/errors");
    if errors.iter().any(|point| point.1 > 0.0) {
        let chart = chart_over_time(
            "Operations not executed, or of unknown outcome",
            ("per second", Scale::FromZero),
            1.0,
            vec![line("not executed or unknown", 1, errors)],
        );
        section.figures.extend(drawing.chart(&chart));
    }
    let rows = figures(run);
    if !rows.is_empty() {
        let mut table = Table::new("What was measured", &[]);
        table.rows = rows.into_iter().map(|(name, figure)| vec![name.to_owned(), figure]).collect();
        section.tables.push(table);
    }
    section
}

/// Name and figure of what a run is described by, without what it did not measure.
pub(super) fn figures(run: &Value) -> Vec<(&'static str, String)> {
    let ops = |pointer: &str| number(run, pointer).map(|value| format!("{} op/s", grouped(value, 0)));
    let count = |pointer: &str| number(run, pointer).map(|value| grouped(value, 0));
    let percent =
        |pointer: &str, of: f64| number(run, pointer).map(|value| format!("{} %", grouped(value * of, 1)));
    let ns = |pointer: &str| number(run, pointer).map(|value| format!("{} ns", significant(value)));
    let all = [
        ("operations", ops("/ops_per_sec")),
        ("gets", ops("/gets_per_sec")),
        ("puts", ops("/puts_per_sec")),
        ("offered", ops("/offered_ops_per_sec")),
        ("gets told the answer of another", ops("/coalesced_per_sec")),
        ("gets with a put behind", ops("/rmws_per_sec")),
        ("conditions not met", count("/conditions_unmet")),
        ("loop", text(run, "/loop").map(str::to_owned)),
        ("operations in all", count("/ops")),
        ("measured", number(run, "/duration_s").map(|seconds| format!("{} s", grouped(seconds, 2)))),
        ("hit ratio", percent("/hit_ratio", 100.0)),
        ("not executed", count("/errors")),
        ("outcome unknown", count("/outcome_unknown")),
        ("due and not sent", count("/unsent").filter(|_| text(run, "/loop") == Some("open"))),
        ("wrong values", count("/wrong_values")),
        ("operations checked", count("/check/ops_checked")),
        ("not linearizable", count("/check/violations")),
        ("datagrams sent", count("/datagrams_tx")),
        ("datagrams received", count("/datagrams_rx")),
        ("requests sent again", count("/retransmits")),
        ("dropped at full receive queues", count("/rx_overflow_drops")),
        ("time in which clients had work", percent("/client_busy_share", 100.0)),
        ("CPU of the clients", percent("/client_cpu_pct", 1.0).map(of_one_core)),
        ("CPU of the servers", percent("/server_cpu_pct", 1.0).map(of_one_core)),
        ("client CPU per operation", ns("/generator_ns_per_op")),
        ("memory of the server", number(run, "/server_rss_bytes").map(mebibytes)),
        ("core to core and back", ns("/core_to_core_ns")),
    ];
    all.into_iter().filter_map(|(name, figure)| Some((name, figure?))).collect()
}

fn of_one_core(percent: String) -> String {
    percent + " of one core"
}

fn latency(run: &Value, series: &[Value], drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Latency");
    let lines = PERCENTILES
        .iter()
        .enumerate()
        .map(|(index, (field, name))| line(*name, index, over_time(series, &format!("/latency_us/{field}"))));
    let chart = chart_over_time("Percentiles over time", ("µs", Scale::Log), 1.0, lines.collect());
    section.figures.extend(drawing.chart(&chart));
    let cdf = cdf(run);
    section.figures.extend(drawing.chart(&distribution(vec![line("operations", 0, cdf.clone())])));
    section.figures.extend(drawing.chart(&tail(vec![line("operations", 0, cdf)])));

    let of: Vec<(&str, &str)> = [
        ("operations", "/latency_us"),
        ("requests", "/batch_latency_us"),
        ("gets with a put behind", "/rmw_latency_us"),
    ]
    .into_iter()
    // A ceiling has no operations, and says 0 for theirs.
    .filter(|(_, pointer)| number(run, &format!("{pointer}/max")).is_some_and(|max| max > 0.0))
    .collect();
    if !of.is_empty() {
        let mut table = Table::new("Percentiles of the whole run, µs", &[""]);
        table.head.extend(PERCENTILES.iter().map(|(_, name)| (*name).to_owned()));
        for (name, pointer) in of {
            let shown = PERCENTILES.iter().map(|(field, _)| us(number(run, &format!("{pointer}/{field}"))));
            table.rows.push([name.to_owned()].into_iter().chain(shown).collect());
        }
        section.tables.push(table);
    }
    if let Some(count) = number(run, "/latency_count").filter(|_| !section.is_empty()) {
        section.paragraphs.push(format!("Of {} operations.", grouped(count, 0)));
    }
    section
}

/// Microseconds in a table whose heading has the unit.
pub(super) fn us(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| grouped(value, if value < 1000.0 { 1 } else { 0 }))
}

/// Points (µs, share of the operations) that rise.
pub(super) fn cdf(run: &Value) -> Vec<(f64, f64)> {
    let points = list(run, "/latency_cdf").iter();
    let points = points.filter_map(|point| Some((number(point, "/0")?, number(point, "/1")?)));
    points.filter(|point| (0.0..=1.0).contains(&point.1)).collect()
}

/// The share of the operations that took no longer.
pub(super) fn distribution(mut series: Vec<Series>) -> Chart {
    for point in series.iter_mut().flat_map(|one| &mut one.points) {
        point.1 *= 100.0;
    }
    Chart {
        title: "How many operations took no longer".into(),
        x: Axis::new("µs", Scale::Log),
        y: Axis::new("% of the operations", Scale::FromZero),
        series,
        y_max: Some(100.0),
    }
}

/// The same where nearly all are done: a nine more at each step.
pub(super) fn tail(mut series: Vec<Series>) -> Chart {
    for one in &mut series {
        // The slowest of all has no share behind it, and no place on this axis.
        one.points.retain(|point| point.1 < 1.0 - 1e-12);
        for point in &mut one.points {
            point.1 = 1.0 / (1.0 - point.1);
        }
    }
    Chart {
        title: "The slowest operations".into(),
        x: Axis::new("µs", Scale::Log),
        y: Axis { ticks: Ticks::Nines, ..Axis::new("% of the operations took no longer", Scale::Log) },
        series,
        y_max: None,
    }
}

fn processors(run: &Value, series: &[Value], drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Processors");
    // A client that polls uses all of its CPU, whatever it has to do.
    let busy = vec![line("clients", 0, over_time(series, "/client/busy_share"))];
    let chart = Chart {
        y_max: Some(100.0),
        ..chart_over_time("Time in which clients had work", ("%", Scale::FromZero), 0.01, busy)
    };
    section.figures.extend(drawing.chart(&chart));
    let servers = vec![line("servers", 1, over_time(series, "/server/cpu_pct"))];
    let chart = chart_over_time("CPU time of the servers", ("% of one core", Scale::FromZero), 1.0, servers);
    if let Some(mut figure) = drawing.chart(&chart) {
        if text(run, "/config/idle") == Some("spin") {
            figure.note = Some("They spin, so they use all of it whether they have work or not.".to_owned());
        }
        section.figures.push(figure);
    }

    let mut busy: BTreeMap<usize, f64> = BTreeMap::new();
    for cpu in series.iter().flat_map(|second| list(second, "/host/cpus")) {
        let Some(id) = cpu.get("cpu").and_then(Value::as_u64) else { continue };
        *busy.entry(id as usize).or_default() += 1.0 - number(cpu, "/idle").unwrap_or(1.0);
    }
    let mut busy: Vec<(usize, f64)> = busy.into_iter().collect();
    let count = busy.len();
    busy.sort_by(|a, b| b.1.total_cmp(&a.1));
    busy.truncate(CPUS_MAX);
    busy.sort_by_key(|&(id, _)| id);
    for (id, _) in &busy {
        section.figures.extend(drawing.chart(&utilisation(series, *id)));
    }
    if count > CPUS_MAX {
        section.paragraphs.push(format!("Of {count} CPUs the {CPUS_MAX} busiest are shown."));
    }
    let memory = vec![
        line("clients", 0, over_time(series, "/client/rss_bytes")),
        line("servers", 1, over_time(series, "/server/rss_bytes")),
    ];
    let chart = chart_over_time("Resident memory", ("MiB", Scale::FromZero), 1_048_576.0, memory);
    section.figures.extend(drawing.chart(&chart));
    if let Some(server) = at(run, "/server_cpu").filter(|server| server.is_object()) {
        section.tables.push(shares(server, at(run, "/client_cpu")));
    }
    section
}

fn cpu_of(second: &Value, id: usize) -> Option<&Value> {
    list(second, "/host/cpus").iter().find(|cpu| cpu.get("cpu").and_then(Value::as_u64) == Some(id as u64))
}

/// What one CPU did, second by second.
fn utilisation(series: &[Value], id: usize) -> Chart {
    let of = |field: &str| {
        let point = |(index, second): (usize, &Value)| {
            let (from, to) = ends(index, second);
            let cpu = cpu_of(second, id)?;
            Some((
                (from + to) / 2.0,
                number(cpu, &format!("/{field}")).unwrap_or(0.0).clamp(0.0, 1.0) * 100.0,
            ))
        };
        series.iter().enumerate().filter_map(point).collect::<Vec<_>>()
    };
    let stacked: Vec<Series> = [("user", 0), ("system", 1), ("softirq", 2), ("stolen", 3)]
        .into_iter()
        .map(|(name, colour)| Series { name: name.into(), mark: Mark::Stacked, colour, points: of(name) })
        .collect();
    let role = series.iter().find_map(|second| text(cpu_of(second, id)?, "/role"));
    let title = match role {
        Some(role) => format!("CPU {id} ({role})"),
        None => format!("CPU {id}"),
    };
    Chart { y_max: Some(100.0), ..chart_over_time(&title, ("%", Scale::FromZero), 1.0, stacked) }
}

/// Where the CPU time of both sides went, of a whole run.
fn shares(server: &Value, client: Option<&Value>) -> Table {
    const STATES: [&str; 5] = ["user", "system", "softirq", "idle", "stolen"];
    let mut table = Table::new("Where the CPU time went, %", &[""]);
    table.head.extend(STATES.map(str::to_owned));
    for (name, side) in [("server", Some(server)), ("client", client)] {
        let Some(side) = side else { continue };
        let share = |state: &str| number(side, &format!("/{state}"));
        let cells =
            STATES.map(|state| share(state).map_or_else(|| "–".into(), |share| grouped(share * 100.0, 1)));
        table.rows.push([name.to_owned()].into_iter().chain(cells).collect());
    }
    table
}

fn network(run: &Value, series: &[Value], drawing: &mut Drawing) -> Section {
    let mut section = Section::new("Network");
    let interface =
        series.iter().find_map(|second| text(second, "/host/interface")).unwrap_or("the interface");
    let gbit = vec![
        line("received", 0, over_time(series, "/host/rx_gbit")),
        line("sent", 1, over_time(series, "/host/tx_gbit")),
    ];
    let title = format!("Bits on {interface}");
    section.figures.extend(drawing.chart(&chart_over_time(&title, ("Gbit/s", Scale::FromZero), 1.0, gbit)));
    let datagrams = vec![
        line("clients sent", 0, counts_over_time(series, "/client/tx_datagrams")),
        line("clients received", 2, counts_over_time(series, "/client/rx_datagrams")),
        line("servers received", 1, counts_over_time(series, "/server/rx_datagrams")),
        line("servers sent", 3, counts_over_time(series, "/server/tx_datagrams")),
    ];
    let most = extent(datagrams.iter().flat_map(|one| &one.points).map(|point| point.1));
    let unit = Unit::of_counts(most.map_or(0.0, |(_, most)| most));
    let chart = chart_over_time("Datagrams", (unit.name, Scale::FromZero), unit.size, datagrams);
    section.figures.extend(drawing.chart(&chart));

    let lost: Vec<Series> = [
        ("network card", "/host/nic_drops"),
        ("softnet backlog", "/host/softnet_drops"),
        ("full socket buffer", "/host/udp_rcvbuf_errors"),
        ("bad checksum", "/host/udp_checksum_errors"),
        ("no memory for UDP", "/host/udp_memory_errors"),
        ("clients", "/client/drops"),
        ("servers", "/server/drops"),
        ("sent again", "/client/retransmits"),
        ("TCP segments sent again", "/host/tcp_retransmits"),
    ]
    .into_iter()
    .map(|(name, pointer)| (name, counts_over_time(series, pointer)))
    .filter(|(_, points)| points.iter().any(|point| point.1 > 0.0))
    .enumerate()
    .map(|(index, (name, points))| line(name, index, points))
    .collect();
    let chart = chart_over_time(
        "Datagrams lost, and requests sent again",
        ("per second", Scale::FromZero),
        1.0,
        lost,
    );
    section.figures.extend(drawing.chart(&chart));

    if let Some(layers) = at(run, "/loss_by_layer").filter(|layers| layers.is_object()) {
        let mut table = Table::new("Lost by layer, from the wire to the session", &["layer", "datagrams"]);
        for (field, name) in LAYERS {
            let count = number(layers, &format!("/{field}"));
            table
                .rows
                .push(vec![name.to_owned(), count.map_or_else(|| "–".into(), |count| grouped(count, 0))]);
        }
        section.tables.push(table);
    }
    section
}

/// What was asked for, folded.
pub(super) fn settings(config: Option<&Value>) -> Section {
    let mut section = Section::new("Settings");
    if let Some(config) = config.and_then(Value::as_object).filter(|config| !config.is_empty()) {
        let mut table = Table::new("What was asked for, with defaults resolved", &["setting", "value"]);
        table.rows = config.iter().map(|(name, value)| vec![name.clone(), plain(value)]).collect();
        (table.is_folded, table.is_text) = (true, true);
        section.tables.push(table);
    }
    section
}

/// The numbers behind the charts, folded.
fn seconds(series: &[Value]) -> Section {
    let mut section = Section::new("Second by second");
    if series.is_empty() {
        return section;
    }
    let head = [
        "seconds",
        "op/s",
        "gets/s",
        "puts/s",
        "not executed or unknown",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "max µs",
        "client busy %",
        "client CPU %",
        "server CPU %",
    ];
    let mut table = Table::new("The numbers of each second", &head);
    for (index, second) in series.iter().enumerate().take(ROWS_MAX) {
        let count =
            |pointer: &str| number(second, pointer).map_or_else(|| "–".into(), |value| grouped(value, 0));
        let latency = |field: &str| us(number(second, &format!("/latency_us/{field}")));
        let (from, to) = ends(index, second);
        table.rows.push(vec![
            format!("{}–{}", significant(from), significant(to)),
            count("/ops_per_sec"),
            count("/gets_per_sec"),
            count("/puts_per_sec"),
            count("/errors"),
            latency("p50"),
            latency("p99"),
            latency("p999"),
            latency("max"),
            number(second, "/client/busy_share")
                .map_or_else(|| "–".into(), |share| grouped(share * 100.0, 0)),
            count("/client/cpu_pct"),
            count("/server/cpu_pct"),
        ]);
    }
    table.is_folded = true;
    if series.len() > ROWS_MAX {
        let rest = series.len() - ROWS_MAX;
        section
            .paragraphs
            .push(format!("The table ends {rest} seconds before the run; result.json has them all."));
    }
    section.tables.push(table);
    section
}

/// Throughput and latency of a run in a line: for lists of runs.
pub(super) fn in_a_line(run: &Value) -> String {
    let latency = |field: &str| number(run, &format!("/latency_us/{field}"));
    match (latency("p50"), latency("p99")) {
        (Some(p50), Some(p99)) if p99 > 0.0 => format!("p50 {}, p99 {}", micros(p50), micros(p99)),
        _ => "latency not measured".to_owned(),
    }
}
