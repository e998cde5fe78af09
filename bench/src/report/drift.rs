//! Whether what pages read is what commands write: every field that is looked up in a result must be one of it.
//!
//! Every look at a result goes through [`folder::at`](super::folder::at), which notes it here. Results are made by the very
//! types that commands serialise, so that a field that is renamed there is missed here.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
};

use serde::Serialize;
use serde_json::Value;

use super::{folder::Folder, kinds, page::Drawing};
use crate::{
    compare::tests::compared,
    latency::LatencyUs,
    output::{Report, tests::report},
    peers::tests::{peer, peers_report},
    search::tests::searched,
    series::{ClientPoint, Point, ServerPoint},
    sweep::tests::swept,
    watch::{
        counters::CpuShares,
        host::{CpuSample, HostSample, Role},
        losses::Losses,
        verdict::{Verdict, VerdictKind},
    },
};

/// Fields that pages look for and these results do not have, with `*` for the index in a list.
const OPTIONAL: [&str; 9] = [
    // Only a run on a virtual cable has them, which shares its section with all runs.
    "/server_cpu",
    "/report/server_cpu",
    // linerate and its peers share a table. Of the one the report of its median round has it, and the others have one round.
    "/linerate/name",
    "/linerate/tried",
    "/linerate/unanswered",
    "/peers/*/max",
    "/peers/*/min",
    "/peers/*/rounds_ops_per_sec",
    "/ratios/linerate",
];

thread_local! {
    /// Where each value of the result is, by its address, and the places that were looked at.
    static LOOKS: RefCell<Option<Looks>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct Looks {
    places: HashMap<usize, String>,
    seen: BTreeSet<String>,
}

/// Notes that `value` is asked for what is at `pointer` in it.
pub(super) fn note(value: &Value, pointer: &str) {
    LOOKS.with_borrow_mut(|looks| {
        let Some(looks) = looks else { return };
        if let Some(place) = looks.places.get(&address(value)) {
            let place = format!("{place}{pointer}");
            looks.seen.insert(place);
        }
    });
}

fn address(value: &Value) -> usize {
    std::ptr::from_ref(value).addr()
}

/// Notes where everything is.
fn places(value: &Value, place: &str, found: &mut HashMap<usize, String>) {
    found.insert(address(value), place.to_owned());
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| places(field, &format!("{place}/{name}"), found));
        }
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, item)| places(item, &format!("{place}/{index}"), found));
        }
        _ => {}
    }
}

/// Whether the result has this field, though it may be null; of what is null, everything may be there another time.
fn has(result: &Value, place: &str) -> bool {
    let mut at = result;
    for part in place.split('/').skip(1) {
        at = match at {
            Value::Null => return true,
            Value::Array(items) => match part.parse::<usize>().ok().and_then(|index| items.get(index)) {
                Some(item) => item,
                None => return true,
            },
            other => match other.get(part) {
                Some(field) => field,
                None => return false,
            },
        };
    }
    true
}

fn without_indices(place: &str) -> String {
    let part = |part: &str| part.parse::<usize>().map_or_else(|_| part.to_owned(), |_| "*".to_owned());
    place.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// The page of what a command writes. Fails when it looks for fields that are not there.
fn page(name: &str, result: &impl Serialize) -> String {
    let folder = Folder::of(name, serde_json::to_value(result).unwrap());
    let mut looks = Looks::default();
    places(&folder.result, "", &mut looks.places);
    LOOKS.set(Some(looks));
    let mut drawing = Drawing::default();
    let sections = kinds::sections(&folder, &mut drawing);
    let words = (kinds::warnings(&folder), kinds::verdicts(&folder), kinds::key(&folder));
    let seen = LOOKS.take().expect("it was set").seen;
    assert!(seen.len() > 20, "{name}: {seen:?}");
    let is_known =
        |place: &String| has(&folder.result, place) || OPTIONAL.contains(&&*without_indices(place));
    let missing: BTreeSet<String> =
        seen.iter().filter(|place| !is_known(place)).map(|place| without_indices(place)).collect();
    assert!(missing.is_empty(), "{name}: looked for and never written: {missing:?}");
    format!("{sections:?} {words:?}")
}

/// A run with everything that a run can have.
fn full() -> Report {
    let latency = LatencyUs { p50: 41.5, p90: 52.5, p99: 63.5, p999: 74.5, p9999: 85.5, max: 96.5 };
    let cpu = |cpu, role| CpuSample {
        cpu,
        role: Some(role),
        shares: CpuShares { user: 0.5, system: 0.25, softirq: 0.125, idle: 0.0625, stolen: 0.0625 },
    };
    let host = HostSample {
        cpus: vec![cpu(0, Role::Server), cpu(1, Role::Client)],
        interface: "lo".to_owned(),
        rx_gbit: 1.5,
        tx_gbit: 2.5,
        rx_frames: 3,
        tx_frames: 4,
        nic_drops: 5,
        softnet_drops: 6,
        softnet_squeezed: 7,
        udp_in_errors: 8,
        udp_rcvbuf_errors: 9,
        udp_sndbuf_errors: 10,
        udp_checksum_errors: 11,
        udp_memory_errors: 12,
        tcp_retransmits: 13,
    };
    let point = |second: u32| Point {
        from_s: f64::from(second) * 2.0,
        to_s: f64::from(second) * 2.0 + 2.0,
        ops_per_sec: 4_123_457.0,
        gets_per_sec: 3_917_285.0,
        puts_per_sec: 206_172.0,
        errors: 14,
        latency_us: latency,
        client: ClientPoint { busy_share: 0.875, drops: 15, retransmits: 16, ..ClientPoint::default() },
        server: Some(ServerPoint { cpu_pct: 77.0, drops: 17, ..ServerPoint::default() }),
        host: Some(host.clone()),
    };
    let mut run = report();
    run.series.points = (0..3).map(point).collect();
    run.verdicts = vec![Verdict { kind: VerdictKind::CpuStolen, text: "Time was stolen.".to_owned() }];
    run.loss_by_layer =
        Some(Losses { nic: 201, softnet: 202, socket: 203, port: 204, session: 205, late: 206 });
    (run.rmws_per_sec, run.rmw_latency_us) = (Some(19.0), Some(latency));
    (run.coalesced_per_sec, run.conditions_unmet) = (Some(20.0), Some(21));
    (run.loop_kind, run.offered_ops_per_sec, run.unsent) = ("open", Some(4e7), 22);
    run
}

fn assert_shows(page: &str, parts: &[&str]) {
    for part in parts {
        assert!(page.contains(part), "{part} is not on the page {page}");
    }
}

/// Goal: the page of a run reads what a run writes, and shows it. Method: a report with all that one can have.
#[test]
fn a_run_is_read_as_it_is_written() {
    let page = page("run", &full());
    assert_shows(
        &page,
        &[
            "41,234,567 op/s",
            "4,123,457",
            "96.5",
            "Time was stolen.",
            "2–4",
            "\"due and not sent\", \"22\"",
            "75.0 %",
            "\"203\"",
            "Time in which clients had work",
            "CPU 1 (client)",
            "Bits on lo",
            // 14 in two seconds.
            "not executed or unknown: 7 at 1",
            "TCP segments sent again: 6.50 at 1",
            "no memory for UDP: 6 at 1",
            "\"gets with a put behind\", \"19 op/s\"",
            "\"conditions not met\", \"21\"",
            "\"gets with a put behind\", \"41.5\", \"52.5\"",
        ],
    );
}

/// Goal: so is a comparison, with what its runs say and what was wrong in them. Method: one of three rounds, of which one
/// candidate has wrong values, and one of a single round.
#[test]
fn a_comparison_is_read_as_it_is_written() {
    let measured = |words| {
        let mut count = 0;
        compared(words, &Default::default(), |of| {
            count += 1;
            let ops_per_sec = if of.name() == "udp" { 4e6 } else { 2e6 } + f64::from(count);
            let wrong_values = Some(u64::from(of.name() == "tcp"));
            Ok(Report { ops_per_sec, wrong_values, ..full() })
        })
        .unwrap()
    };
    let page_of = |words| page("compare", &measured(words));
    let three = page_of("udp tcp --rounds 3");
    assert_shows(
        &three,
        &[
            "udp does 2.00 times what tcp does (rounds: 2.00 to 2.00), larger than the noise.",
            "udp: Time was stolen.",
            "tcp: 3 values were wrong.",
            "Student's t",
            "Ratios within a round",
            "\"yes\"",
        ],
    );
    let one = page_of("udp tcp --rounds 1");
    assert_shows(&one, &["of too few rounds to tell it from noise", "too few rounds", "cannot be told"]);
}

/// Goal: so is a sweep, and a point that failed is no result, even when it has a report. Method: three points, one of which
/// was wrong.
#[test]
fn a_sweep_is_read_as_it_is_written() {
    let mut sweep = swept("--over batch=16,32,64 --repeats 2");
    for (index, point) in sweep.points.iter_mut().enumerate() {
        let ops_per_sec = 1e6 * (index + 1) as f64;
        point.report = Some(serde_json::to_value(Report { ops_per_sec, ..full() }).unwrap());
        point.rounds_ops_per_sec = vec![ops_per_sec, ops_per_sec + 7.0];
    }
    sweep.points[2].error = Some("3 values were wrong".to_owned());
    let page = page("sweep", &sweep);
    assert_shows(
        &page,
        &[
            "Throughput by batch",
            "\"2: 2,000,000 – 2,000,007\"",
            "cpu-stolen",
            "\"3 values were wrong\"",
            "1 of 3 points have no valid result; batch 64: 3 values were wrong",
            "3 of 3 runs have the verdict cpu-stolen: batch 16, batch 32, batch 64.",
        ],
    );
    assert!(!page.contains("\"3,000,000\""), "a wrong point is shown as a result: {page}");
}

/// Goal: so is a search, whether it found a rate, no limit, or a run that was wrong. Method: systems that do so.
#[test]
fn a_search_is_read_as_it_is_written() {
    let run = |ops_per_sec, p99, wrong| {
        let latency_us = LatencyUs { p99, p9999: 1_000.0, ..full().latency_us };
        let losses = Losses::default();
        Report {
            ops_per_sec,
            latency_us,
            wrong_values: Some(wrong),
            loss_by_layer: Some(losses),
            unsent: 0,
            rx_overflow_drops: 0,
            ..full()
        }
    };
    let found = page(
        "search",
        &searched("--slo p99.99=2ms --slo p99=500us", |rate| match rate {
            Some(rate) if rate > 1.5e6 => run(rate, 900.0, 0),
            rate => run(rate.unwrap_or(2e6), 300.0, 0),
        }),
    );
    let shown = [
        "the highest rate that keeps p99.99 within 2,000 µs and p99 within 500 µs and no loss",
        "missed it.",
        "at the highest rate kept",
        "Time was stolen.",
        "How sure that is",
    ];
    assert_shows(&found, &shown);
    let endless = page("search", &searched("--slo p99=500us", |rate| run(rate.unwrap_or(2e6), 300.0, 0)));
    assert_shows(&endless, &["no rate missed it: even twice the throughput of a closed loop was kept"]);
    let wrong = page(
        "search",
        &searched("--slo p99=500us", |rate| run(rate.unwrap_or(2e6), 300.0, u64::from(rate.is_some()))),
    );
    assert_shows(
        &wrong,
        &[
            "PARTIAL",
            "1 values were wrong.",
            "The search ended before it knew: ",
            "of the run that ended the search",
        ],
    );
    assert!(!wrong.contains("at the highest rate kept"), "{wrong}");
    let never = page("search", &searched("--slo p99=1us", |rate| run(rate.unwrap_or(2e6), 300.0, 0)));
    assert_shows(&never, &["No rate kept it; 1,000 op/s was the lowest that missed it."]);
}

/// Goal: so is a comparison with other stores. Method: one with two of them.
#[test]
fn peers_are_read_as_they_are_written() {
    let mut redis = peer("redis", 2.5e6);
    redis.unanswered = 23;
    let page = page("peers", &peers_report(vec![redis, peer("memcached", 2e6)]));
    assert_shows(
        &page,
        &[
            "redis 1.2.3",
            "linerate does 12 times what redis does.",
            "\"server\"",
            "\"23\"",
            "MGET 100",
            "All settings that were tried",
            "\"51.0\"",
            "valkey-server is not installed",
            "Settings",
        ],
    );
}
