//! What a run's figures are worth, in plain words.
//!
//! A benchmark's number is that of the slowest part, and only if nothing went wrong meanwhile. Each rule below has a threshold
//! with its reason; what none of them objects to is said to be fine.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::losses::Losses;
use crate::{median::median, output::shown};

/// Share of the time with work from which on a side is the limit: what is left is too little to be anything but the turns
/// between two bursts.
const BUSY_SHARE_MIN: f64 = 0.95;

/// Share of line rate from which on the network is the limit: bursts do not fill a link to the last bit.
const LINE_RATE_SHARE_MIN: f64 = 0.95;

/// Seconds from which on the halves of a run can be compared: with less, two halves of which each second of one is above each of
/// the other are no rare accident (at 4 + 4, one in 35).
const HALVES_SECONDS_MIN: usize = 8;

/// How far apart two halves rank, in standard deviations of the rank sum (Mann and Whitney, 1947), before it is no accident: with
/// so many, under 3 of 100 steady runs are above.
const RANK_DEVIATIONS_MIN: f64 = 2.3;

/// By how much the medians of the halves differ, as a share of the greater, before it matters: what is less changes nobody's
/// conclusion.
const DRIFT_SHARE_MIN: f64 = 0.05;

/// Seconds from which on a deviation can be told.
const DEVIATION_SECONDS_MIN: usize = 4;

/// Standard deviation of a second's throughput, as a share of the mean, from which on the mean says little.
const DEVIATION_SHARE_MAX: f64 = 0.1;

/// Share of the datagrams that may be lost before it is worth a word: one in 100,000 delays too few operations to show in p99.99.
const LOSS_SHARE_MAX: f64 = 1e-5;

/// Share of the requests that may be sent again without a loss that anybody has seen: each waited for its timeout, so that more
/// than these show in p99.9.
const SENT_AGAIN_SHARE_MAX: f64 = 1e-3;

/// Share of the operations that were due that may be missing: what the schedule itself is held to.
const BEHIND_SHARE_MAX: f64 = 1e-3;

/// More CPU time than this, in per cent, is not that of one core: ticks of the kernel's clock make less of a difference.
const CORE_PCT_MAX: f64 = 110.0;

/// Share of its time that a CPU may be without: more is a time slice of 10 ms in every second, which is all that p99.9 then shows.
const STOLEN_SHARE_MAX: f64 = 0.01;

/// Share of their time that other programs may take of the CPUs of server or client: less hardly delays anybody, and the ticks by
/// which the kernel divides time are not more exact.
const OTHERS_SHARE_MAX: f64 = 0.1;

/// How much the distance of two cores may change: measuring it twice gives nearly the same, and where virtual CPUs move it
/// changes by a factor of five.
const CORES_MOVED_RATIO_MAX: f64 = 2.0;

/// What is known of a run. What is not known is `None`, empty or 0, and not judged.
#[derive(Clone, Debug, Default)]
pub struct RunFacts {
    /// CPU time of each client thread, in per cent of one core.
    pub client_cpu_pct: Vec<f64>,
    /// Whether client threads poll without a pause: then they take all of a core, whatever they have to do.
    pub clients_spin: bool,
    /// Share of the client threads' time with work, 0 to 1. Of the time, not of the turns: one in which nothing has arrived is over
    /// in a fraction of one with work.
    pub client_busy_share: Option<f64>,
    /// CPU time of each server core, in per cent of one; a core for itself each. When one has more than a core can have, they
    /// are sums, which do not tell who was busy, and none counts.
    pub server_cpu_pct: Vec<f64>,
    /// Whether server cores poll without a pause.
    pub server_spins: bool,
    /// Share of the server cores' time with work, 0 to 1; that of their CPUs ([`busy_share`](super::host::busy_share)) has the
    /// kernel's receiving in it, which CPU time of threads has not.
    pub server_busy_share: Option<f64>,
    /// Operations per second in each second that counts.
    pub series: Vec<f64>,
    /// Operations per second that were asked for, in an open loop.
    pub offered_ops_per_sec: Option<f64>,
    /// Operations per second that really were due in the measured time: by chance more or fewer than were asked for. `None` in
    /// a closed loop, or when nobody counted.
    pub due_ops_per_sec: Option<f64>,
    /// Those of them per second that were answered: operations answered, without the puts of reads-modify-writes, which no
    /// schedule knows, and with the gets that were told the answer of another. In an open loop only.
    pub due_answered_per_sec: Option<f64>,
    /// Share of the network's line rate in the fuller direction
    /// ([`NicFacts::line_rate_share`](super::nic::NicFacts::line_rate_share)).
    pub line_rate_share: Option<f64>,
    /// Requests sent for the first time.
    pub requests: u64,
    /// Requests sent again.
    pub retransmits: u64,
    /// Datagrams that clients sent and received.
    pub datagrams: u64,
    /// Where datagrams were lost.
    pub losses: Option<Losses>,
    /// Greatest share of its time that a CPU of client or server was without ([`stolen_share`](super::host::stolen_share)).
    pub stolen_share: Option<f64>,
    /// Greatest share of their time that CPUs of server or client spent in other programs
    /// ([`others_share`](super::host::others_share)).
    pub others_share: Option<f64>,
    /// Round trip of a cache line between server and client core before the run in ns.
    pub core_to_core_before_ns: Option<f64>,
    /// The same after it.
    pub core_to_core_after_ns: Option<f64>,
    /// Whether there were fewer CPUs than threads.
    pub is_crowded: bool,
}

/// What kind of thing a verdict says. The names are a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictKind {
    /// Nothing stands out.
    Healthy,
    /// The figure is that of the generator.
    ClientLimited,
    /// The figure is that of the server, as it should be.
    ServerLimited,
    /// The figure is that of the network.
    NetworkLimited,
    /// The throughput of one half is not that of the other.
    NotStationary,
    /// The throughput varies from second to second.
    Unsteady,
    /// Frames were lost at the interface.
    LossAtNic,
    /// Packets were lost between the CPUs.
    LossAtSoftnet,
    /// Datagrams were lost at a socket.
    LossAtSocket,
    /// Datagrams were lost in a port.
    LossAtPort,
    /// Datagrams were of no use to a session.
    LossAtSession,
    /// Requests were sent again and nobody saw a loss.
    SentAgain,
    /// Less was achieved than offered.
    BehindSchedule,
    /// The machine below took CPU time.
    CpuStolen,
    /// Other programs took CPU time.
    CpuShared,
    /// The distance between the cores changed.
    CoresMoved,
    /// Threads had to share CPUs.
    Crowded,
}

/// One thing to know about a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What kind of thing.
    pub kind: VerdictKind,
    /// It in a sentence or two, with the numbers and what can be done.
    pub text: String,
}

impl Verdict {
    const fn new(kind: VerdictKind, text: String) -> Self {
        Self { kind, text }
    }
}

/// Judges a run: what is wrong with it and what its limit was, or that nothing stands out.
#[must_use]
pub fn verdicts(facts: &RunFacts) -> Vec<Verdict> {
    let limit = limit(facts);
    let mut verdicts: Vec<_> = [
        crowded(facts),
        steadiness(facts),
        behind_schedule(facts),
        cpu_stolen(facts),
        cpu_shared(facts),
        cores_moved(facts),
    ]
    .into_iter()
    .flatten()
    .chain(losses(facts))
    .collect();
    match limit {
        Limit::Client(text) => verdicts.insert(0, Verdict::new(VerdictKind::ClientLimited, text)),
        Limit::Server(text) if !verdicts.is_empty() => {
            verdicts.push(Verdict::new(VerdictKind::ServerLimited, text));
        }
        Limit::Network(text) if !verdicts.is_empty() => {
            verdicts.push(Verdict::new(VerdictKind::NetworkLimited, text));
        }
        Limit::Server(text) | Limit::Network(text) | Limit::Other(text) if verdicts.is_empty() => {
            let text = format!("Nothing stands out. {text} {}", steady_words(&facts.series));
            verdicts.push(Verdict::new(VerdictKind::Healthy, text));
        }
        Limit::Server(_) | Limit::Network(_) | Limit::Other(_) => {}
    }
    verdicts
}

/// What would have to be faster for the run to be, with a sentence about it.
enum Limit {
    Client(String),
    Server(String),
    Network(String),
    /// None of these, or unknown.
    Other(String),
}

/// The share of time that the busiest had work: as told, or else from CPU time, which says so of threads that sleep.
fn busy_share(told: Option<f64>, cpu_pct: &[f64], spins: bool) -> Option<f64> {
    let busiest = || cpu_pct.iter().copied().max_by(f64::total_cmp).map(|pct| pct / 100.0);
    told.or_else(|| if spins { None } else { busiest() }).filter(|share| share.is_finite())
}

fn limit(facts: &RunFacts) -> Limit {
    if let Some(share) = facts.line_rate_share.filter(|&share| share >= LINE_RATE_SHARE_MIN) {
        return Limit::Network(format!(
            "The network was the limit: {} of line rate were used.",
            percent(share)
        ));
    }
    if facts.is_crowded {
        // Nobody is busy for as long as others have the CPU.
        return Limit::Other("Client and server shared the CPUs, which were the limit.".to_owned());
    }
    if is_shared(facts).is_some() {
        // A CPU that others keep busy says nothing of who had work.
        return Limit::Other("Other programs used the CPUs, so what the limit was is not known.".to_owned());
    }
    let client = busy_share(facts.client_busy_share, &facts.client_cpu_pct, facts.clients_spin);
    let server = busy_share(facts.server_busy_share, server_cores(facts), facts.server_spins);
    let is_full = |share: Option<f64>| share.is_some_and(|share| share >= BUSY_SHARE_MIN);
    let shown = |share: Option<f64>| share.map_or_else(|| "an unknown part".to_owned(), percent);
    let (client_text, server_text) = (shown(client), shown(server));
    // A server core looks for work for a while before it sleeps: at a steady rate it never seems to rest, and limits nothing.
    let kept = facts.offered_ops_per_sec.filter(|&offered| offered > 0.0 && behind_schedule(facts).is_none());
    if let Some(offered) = kept.filter(|_| !is_full(client)) {
        return Limit::Other(format!("The offered {} op/s were kept.", number(offered)));
    }
    match (is_full(client), is_full(server)) {
        (true, true) => Limit::Client(format!(
            "Client and server both had work all the time ({client_text} and {server_text} of it): the figure may be the client's. \
             More --threads, on CPUs of their own, tell."
        )),
        (true, false) if server.is_none() => Limit::Client(format!(
            "The client had work {client_text} of the time, and how much the server had is not known: the figure may be the \
             client's. Give it more --threads, on CPUs of their own, or have the server sleep when it has nothing to do (--idle epoll)."
        )),
        (true, false) => Limit::Client(format!(
            "The client is the limit: it had work {client_text} of the time, the server only {server_text}. Give it more \
             --threads, on CPUs of their own, or use more client machines."
        )),
        (false, true) => Limit::Server(format!(
            "{} is the limit: it had work {server_text} of the time.",
            server_words(facts)
        )),
        (false, false) => Limit::Other(match (client, server) {
            (_, None) if facts.server_spins => {
                "Whether the server was the limit is not known, since one that spins is \
                                                          never seen to rest: a run with --idle epoll tells."
                    .to_owned()
            }
            (_, None) => "What the limit was is not known: nobody looked at the server.".to_owned(),
            (None, Some(_)) => {
                format!(
                    "The server was not the limit (it had work {server_text} of the time); whether the client was is not known."
                )
            }
            (Some(_), Some(_)) => format!(
                "Neither side was the limit (the client had work {client_text} of the time, the server {server_text}): more \
                     --batch, --window or --threads may give more."
            ),
        }),
    }
}

/// CPU time of each server core, if it is that.
fn server_cores(facts: &RunFacts) -> &[f64] {
    let is_core = |&pct: &f64| (0.0..=CORE_PCT_MAX).contains(&pct);
    if facts.server_cpu_pct.iter().all(is_core) { &facts.server_cpu_pct } else { &[] }
}

/// Which part of the server was busiest, if they differ.
fn server_words(facts: &RunFacts) -> String {
    let pct = server_cores(facts);
    let count = pct.len();
    let mean = pct.iter().sum::<f64>() / count.max(1) as f64;
    let busiest = pct.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0);
    if count < 2 || facts.server_spins {
        return "The server".to_owned();
    }
    format!(
        "The busiest of the server's {count} cores ({busiest:.0} % of a CPU, all of them {mean:.0} % on average)"
    )
}

fn crowded(facts: &RunFacts) -> Option<Verdict> {
    facts.is_crowded.then(|| {
        let text = "There were fewer CPUs than threads: client and server took turns, which real ones do not. Use fewer --threads \
                    or --server-cores, or a machine with more CPUs.";
        Verdict::new(VerdictKind::Crowded, text.to_owned())
    })
}

/// Whether the seconds are alike. A run that drifts is not called unsteady besides.
fn steadiness(facts: &RunFacts) -> Option<Verdict> {
    if let Some(Drift { first, second }) = drift(&facts.series) {
        let text = format!(
            "The run is not stationary: its second half had {} op/s, its first {}. A longer --warmup or --duration shows where it \
             settles, or something else ran on the machine.",
            number(second),
            number(first)
        );
        return Some(Verdict::new(VerdictKind::NotStationary, text));
    }
    let share = deviation_share(&facts.series).filter(|&share| share > DEVIATION_SHARE_MAX)?;
    let (min, max) = extremes(&facts.series);
    let text = format!(
        "The throughput is unsteady: seconds differ by {} (standard deviation), from {} to {} op/s. Take the median of several runs, \
         and see that nothing else runs on the machine.",
        percent(share),
        number(min),
        number(max)
    );
    Some(Verdict::new(VerdictKind::Unsteady, text))
}

fn behind_schedule(facts: &RunFacts) -> Option<Verdict> {
    let due = facts.due_ops_per_sec.filter(|&due| due > 0.0)?;
    let answered = facts.due_answered_per_sec?;
    let missing = 1.0 - answered / due;
    (missing > BEHIND_SHARE_MAX).then(|| {
        let text = format!(
            "Less was achieved than was due: {} of {} op/s, {} less. Latencies count from the time that was meant, and grow for as \
             long as the run lasts: choose a lower --rate.",
            number(answered),
            number(due),
            percent(missing)
        );
        Verdict::new(VerdictKind::BehindSchedule, text)
    })
}

fn cpu_stolen(facts: &RunFacts) -> Option<Verdict> {
    let share = facts.stolen_share.filter(|&share| share > STOLEN_SHARE_MAX)?;
    let text = format!(
        "The machine below this virtual one took {} of a CPU's time: figures are too low and latencies too long by an unknown part. \
         Repeat the run, or use a machine of your own.",
        percent(share)
    );
    Some(Verdict::new(VerdictKind::CpuStolen, text))
}

/// What others took of the CPUs, if it matters.
fn is_shared(facts: &RunFacts) -> Option<f64> {
    facts.others_share.filter(|&share| share > OTHERS_SHARE_MAX && !facts.is_crowded)
}

fn cpu_shared(facts: &RunFacts) -> Option<Verdict> {
    let text = format!(
        "Other programs took {} of the time of the CPUs that server or client had: figures are too low and latencies too long by an \
         unknown part, and what the limit was is not known. Repeat the run when nothing else runs on the machine.",
        percent(is_shared(facts)?)
    );
    Some(Verdict::new(VerdictKind::CpuShared, text))
}

fn cores_moved(facts: &RunFacts) -> Option<Verdict> {
    let (before, after) = (facts.core_to_core_before_ns?, facts.core_to_core_after_ns?);
    let ratio = before.max(after) / before.min(after);
    (ratio > CORES_MOVED_RATIO_MAX).then(|| {
        let text = format!(
            "The cores of client and server moved: a cache line went from one to the other and back in {before:.0} ns before the run \
             and in {after:.0} ns after it. Repeat the run until both are alike."
        );
        Verdict::new(VerdictKind::CoresMoved, text)
    })
}

fn losses(facts: &RunFacts) -> Vec<Verdict> {
    let losses = facts.losses.unwrap_or_default();
    let (datagrams, share) = (facts.datagrams, |lost: u64| lost as f64 / facts.datagrams.max(1) as f64);
    let words = [
        (
            VerdictKind::LossAtNic,
            "the card",
            "frames were dropped or broken",
            "Longer receive rings and a queue for each core help (`setup/tune-nic.sh apply`).",
        ),
        (
            VerdictKind::LossAtSoftnet,
            "a CPU's queue (softnet)",
            "packets found it full",
            "A greater net.core.netdev_max_backlog helps (`setup/tune-nic.sh apply`).",
        ),
        (
            VerdictKind::LossAtSocket,
            "the socket",
            "datagrams found a socket or ring full",
            "A greater --receive-buffer of the server, or a smaller --window, keeps them from it.",
        ),
        (
            VerdictKind::LossAtPort,
            "the port",
            "datagrams were given up by a port",
            "The statistics rx_truncated, rx_bad_… and tx_dropped say which.",
        ),
        (
            VerdictKind::LossAtSession,
            "the session",
            "datagrams were of no use to a session",
            "The statistics drop_… say why; other clients of another version or with an old session are the usual reason.",
        ),
    ];
    let mut verdicts: Vec<_> = words
        .into_iter()
        .zip(losses.by_layer())
        .filter(|&(_, (_, lost))| lost > 0 && (datagrams == 0 || share(lost) > LOSS_SHARE_MAX))
        .map(|((kind, place, what, remedy), (_, lost))| {
            let of = if datagrams == 0 { String::new() } else { format!(" of {}", whole(datagrams)) };
            Verdict::new(kind, format!("Loss at {place}: {}{of} {what}. {remedy}", whole(lost)))
        })
        .collect();
    let again = facts.retransmits as f64 / facts.requests.max(1) as f64;
    if verdicts.is_empty() && facts.requests > 0 && again > SENT_AGAIN_SHARE_MAX {
        let text = format!(
            "{} of {} requests ({}) were sent again, and nothing here counted a loss: they were lost on the way or at the other \
             machine, or their answers came after the timeout.",
            whole(facts.retransmits),
            whole(facts.requests),
            percent(again)
        );
        verdicts.push(Verdict::new(VerdictKind::SentAgain, text));
    }
    verdicts
}

/// Medians of two halves that differ, in operations per second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Drift {
    first: f64,
    second: f64,
}

/// Compares the first half with the second, without the second in the middle if there is one. Ranks alone decide whether they
/// differ: what the noise looks like does not matter, and a few seconds that are far off weigh no more than others. It finds steps
/// as well as trends; what goes up and comes down again is for [`deviation_share`].
fn drift(series: &[f64]) -> Option<Drift> {
    if series.len() < HALVES_SECONDS_MIN {
        return None;
    }
    let half = series.len() / 2;
    let (first, second) = (&series[..half], &series[series.len() - half..]);
    let medians = Drift { first: median(first.to_vec())?, second: median(second.to_vec())? };
    let apart = (medians.second - medians.first).abs() / medians.first.max(medians.second);
    let differs = apart > DRIFT_SHARE_MIN && rank_deviations(first, second).abs() >= RANK_DEVIATIONS_MIN;
    differs.then_some(medians)
}

/// How far the rank sum of `second` is from what chance makes of it, in standard deviations; equal values share their ranks.
fn rank_deviations(first: &[f64], second: &[f64]) -> f64 {
    let (a, b) = (first.len() as f64, second.len() as f64);
    let mut all: Vec<_> =
        first.iter().map(|&value| (value, 0.0)).chain(second.iter().map(|&value| (value, 1.0))).collect();
    all.sort_by(|(left, _), (right, _)| left.total_cmp(right));
    let (mut sum, mut below) = (0.0, 0);
    for equal in all.chunk_by(|(left, _), (right, _)| left.total_cmp(right) == Ordering::Equal) {
        let rank = below as f64 + (equal.len() as f64 + 1.0) / 2.0;
        sum += rank * equal.iter().map(|&(_, is_second)| is_second).sum::<f64>();
        below += equal.len();
    }
    (sum - b * (a + b + 1.0) / 2.0) / (a * b * (a + b + 1.0) / 12.0).sqrt()
}

/// Standard deviation of the seconds as a share of their mean.
fn deviation_share(series: &[f64]) -> Option<f64> {
    if series.len() < DEVIATION_SECONDS_MIN {
        return None;
    }
    let mean = series.iter().sum::<f64>() / series.len() as f64;
    let squares: f64 = series.iter().map(|value| (value - mean).powi(2)).sum();
    let share = (squares / (series.len() - 1) as f64).sqrt() / mean;
    share.is_finite().then_some(share)
}

fn extremes(series: &[f64]) -> (f64, f64) {
    series.iter().fold((f64::INFINITY, 0.0), |(min, max), &value| (value.min(min), value.max(max)))
}

fn steady_words(series: &[f64]) -> String {
    match deviation_share(series) {
        Some(share) => format!("Seconds differ by {} (standard deviation).", percent(share)),
        None => {
            format!("Whether it was steady cannot be told from fewer than {DEVIATION_SECONDS_MIN} seconds.")
        }
    }
}

/// A share as people write it: with decimals where they matter.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent < 10.0 { format!("{percent:.2} %") } else { format!("{percent:.0} %") }
}

fn number(value: f64) -> String {
    shown(Some(value), 0)
}

fn whole(count: u64) -> String {
    number(count as f64)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};
    use rand_distr::{Distribution, Normal};

    use super::{VerdictKind as Kind, *};

    /// A run of which nothing stands out: the server is the limit.
    fn healthy() -> RunFacts {
        RunFacts {
            client_cpu_pct: vec![99.8],
            clients_spin: true,
            client_busy_share: Some(0.7),
            server_cpu_pct: vec![99.0],
            server_spins: false,
            server_busy_share: None,
            series: [1.0, 1.01, 0.99, 1.0, 1.0, 1.02, 0.98, 1.0, 1.01].map(|share| share * 4e7).to_vec(),
            offered_ops_per_sec: None,
            due_ops_per_sec: None,
            due_answered_per_sec: None,
            line_rate_share: Some(0.5),
            requests: 1_000_000,
            retransmits: 100,
            datagrams: 10_000_000,
            losses: Some(Losses::default()),
            stolen_share: Some(0.001),
            others_share: Some(0.01),
            core_to_core_before_ns: Some(60.0),
            core_to_core_after_ns: Some(70.0),
            is_crowded: false,
        }
    }

    fn kinds(facts: &RunFacts) -> Vec<Kind> {
        let verdicts = verdicts(facts);
        for Verdict { kind, text } in &verdicts {
            println!("{kind:?}: {text}");
            assert!(text.ends_with('.') && !text.contains("NaN") && !text.contains("inf "), "{text}");
        }
        verdicts.iter().map(|verdict| verdict.kind).collect()
    }

    /// Goal: in an open loop that keeps its rate nobody is the limit, although a server core that looks for work seems busy all
    /// the time; in one that does not, or whose client has no time left, somebody is. Method: the same run with other rates.
    #[test]
    fn a_rate_that_is_kept_has_no_limit() {
        let open = |answered| RunFacts {
            offered_ops_per_sec: Some(1e6),
            due_ops_per_sec: Some(1e6),
            due_answered_per_sec: Some(answered),
            ..healthy()
        };
        let kept = verdicts(&open(1e6));
        assert!(kept[0].text.contains("The offered 1,000,000 op/s were kept."), "{kept:?}");
        assert_eq!(kinds(&RunFacts { stolen_share: Some(0.5), ..open(1e6) }), [Kind::CpuStolen]);
        assert_eq!(kinds(&open(0.9e6)), [Kind::BehindSchedule, Kind::ServerLimited]);
        assert_eq!(kinds(&RunFacts { client_busy_share: Some(0.99), ..open(1e6) }), [Kind::ClientLimited]);
    }

    /// Goal: each verdict appears when it should and not a step before. Method: a healthy run with one thing changed, on either
    /// side of its threshold.
    #[test]
    fn each_verdict_has_its_threshold() {
        type Change = fn(&mut RunFacts);
        let cases: &[(Kind, Change, Change)] = &[
            (
                Kind::CpuStolen,
                |facts| facts.stolen_share = Some(0.011),
                |facts| facts.stolen_share = Some(0.01),
            ),
            (
                Kind::CoresMoved,
                |facts| facts.core_to_core_after_ns = Some(121.0),
                |facts| facts.core_to_core_after_ns = Some(120.0),
            ),
            (
                Kind::CoresMoved,
                |facts| facts.core_to_core_after_ns = Some(29.0),
                |facts| facts.core_to_core_after_ns = None,
            ),
            (
                Kind::BehindSchedule,
                |facts| (facts.due_ops_per_sec, facts.due_answered_per_sec) = (Some(4e7), Some(3.99e7)),
                |facts| (facts.due_ops_per_sec, facts.due_answered_per_sec) = (Some(4e7), Some(3.997e7)),
            ),
            (
                Kind::BehindSchedule,
                |facts| (facts.due_ops_per_sec, facts.due_answered_per_sec) = (Some(5e3), Some(4.9e3)),
                // By chance fewer were due than were asked for, and all were answered.
                |facts| {
                    facts.offered_ops_per_sec = Some(5e3);
                    (facts.due_ops_per_sec, facts.due_answered_per_sec) = (Some(4.9e3), Some(4.9e3));
                },
            ),
            (
                Kind::Unsteady,
                |facts| {
                    facts.series = [1.0, 0.8, 1.2, 0.8, 1.0, 1.2, 0.8, 1.2].map(|share| share * 4e7).to_vec()
                },
                |facts| {
                    facts.series =
                        [1.0, 0.95, 1.05, 0.95, 1.0, 1.05, 0.95, 1.05].map(|share| share * 4e7).to_vec()
                },
            ),
            (
                Kind::Unsteady,
                |facts| facts.series = vec![1.0, 2.0, 1.0, 2.0],
                |facts| facts.series = vec![1.0, 2.0, 1.0],
            ),
            (
                Kind::NotStationary,
                |facts| facts.series = [[3.7e7; 4], [4e7; 4]].concat(),
                |facts| facts.series = [[3.9e7; 4], [4e7; 4]].concat(),
            ),
            (
                Kind::NotStationary,
                |facts| facts.series = (0..20).map(|second| 4e7 - f64::from(second) * 3e5).collect(),
                |facts| facts.series = [[3.7e7; 3], [4e7; 3]].concat(),
            ),
            (
                Kind::LossAtNic,
                |facts| facts.losses = Some(Losses { nic: 101, ..Losses::default() }),
                |facts| facts.losses = Some(Losses { nic: 100, ..Losses::default() }),
            ),
            (
                Kind::LossAtSoftnet,
                |facts| facts.losses = Some(Losses { softnet: 101, ..Losses::default() }),
                |facts| facts.losses = Some(Losses { softnet: 100, ..Losses::default() }),
            ),
            (
                Kind::LossAtSocket,
                |facts| facts.losses = Some(Losses { socket: 101, ..Losses::default() }),
                |facts| facts.losses = Some(Losses { socket: 100, ..Losses::default() }),
            ),
            (
                Kind::LossAtPort,
                |facts| facts.losses = Some(Losses { port: 101, ..Losses::default() }),
                |facts| facts.losses = Some(Losses { port: 100, ..Losses::default() }),
            ),
            (
                Kind::LossAtSession,
                |facts| facts.losses = Some(Losses { session: 101, ..Losses::default() }),
                // Copies are no loss.
                |facts| facts.losses = Some(Losses { session: 100, late: 1_000, ..Losses::default() }),
            ),
            (Kind::SentAgain, |facts| facts.retransmits = 1_001, |facts| facts.retransmits = 1_000),
        ];
        for &(kind, sick, well) in cases {
            let (mut bad, mut good) = (healthy(), healthy());
            sick(&mut bad);
            well(&mut good);
            assert_eq!(kinds(&bad), [kind, Kind::ServerLimited]);
            assert_eq!(kinds(&good), [Kind::Healthy], "{kind:?}");
        }
        let shared =
            |share| kinds(&RunFacts { others_share: Some(share), client_busy_share: Some(1.0), ..healthy() });
        assert_eq!(shared(0.11), [Kind::CpuShared], "nobody is known to be the limit");
        assert_eq!(shared(0.1), [Kind::ClientLimited]);
        let crowded = RunFacts { is_crowded: true, others_share: Some(0.5), ..healthy() };
        assert_eq!(kinds(&crowded), [Kind::Crowded], "nobody is the limit who has no CPU of its own");
        // A loss that was seen explains what was sent again.
        let losses = Some(Losses { socket: 5_000, ..Losses::default() });
        let lossy = RunFacts { losses, retransmits: 5_000, ..healthy() };
        assert_eq!(kinds(&lossy), [Kind::LossAtSocket, Kind::ServerLimited]);
        let unknown = RunFacts { losses, datagrams: 0, ..healthy() };
        assert_eq!(kinds(&unknown), [Kind::LossAtSocket, Kind::ServerLimited]);
    }

    /// Goal: the limit is named where it can be known. Method: all ways in which the two sides can be busy.
    #[test]
    fn the_limit_is_named() {
        let limit = |change: fn(&mut RunFacts)| {
            let mut facts = healthy();
            change(&mut facts);
            let verdicts = verdicts(&facts);
            assert_eq!(verdicts.len(), 1, "{verdicts:?}");
            println!("{}", verdicts[0].text);
            (verdicts[0].kind, verdicts[0].text.clone())
        };
        let has = |(kind, text): (Kind, String), wanted, words: &str| {
            assert!(kind == wanted && text.contains(words), "{kind:?}: {text}");
        };
        has(limit(|_| ()), Kind::Healthy, "The server is the limit: it had work 99 % of the time.");
        has(limit(|_| ()), Kind::Healthy, "Seconds differ by 1.17 %");
        // A spinning client takes all of its core and says nothing by it.
        has(
            limit(|facts| (facts.client_busy_share, facts.server_cpu_pct) = (None, vec![60.0])),
            Kind::Healthy,
            "The server was not the limit (it had work 60 % of the time)",
        );
        has(limit(|facts| facts.server_cpu_pct = vec![60.0]), Kind::Healthy, "Neither side was the limit");
        has(limit(|facts| facts.server_cpu_pct = vec![]), Kind::Healthy, "nobody looked");
        has(
            limit(|facts| (facts.client_busy_share, facts.server_cpu_pct) = (Some(0.96), vec![60.0])),
            Kind::ClientLimited,
            "it had work 96 % of the time, the server only 60 %",
        );
        has(limit(|facts| facts.client_busy_share = Some(0.96)), Kind::ClientLimited, "both had work");
        has(
            limit(|facts| (facts.client_busy_share, facts.server_spins) = (Some(0.96), true)),
            Kind::ClientLimited,
            "is not known",
        );
        has(limit(|facts| facts.server_spins = true), Kind::Healthy, "--idle epoll");
        has(
            limit(|facts| (facts.server_spins, facts.server_busy_share) = (true, Some(0.97))),
            Kind::Healthy,
            "The server is the limit: it had work 97 %",
        );
        // Without spinning, CPU time tells of clients, too; of several threads the busiest counts.
        has(
            limit(|facts| {
                (facts.client_busy_share, facts.clients_spin) = (None, false);
                (facts.client_cpu_pct, facts.server_cpu_pct) = (vec![50.0, 97.0], vec![40.0]);
            }),
            Kind::ClientLimited,
            "97 %",
        );
        has(
            limit(|facts| facts.server_cpu_pct = vec![98.0, 50.0, 52.0, 48.0]),
            Kind::Healthy,
            "The busiest of the server's 4 cores (98 % of a CPU, all of them 62 % on average) is the limit",
        );
        // The sum of several cores tells nothing of one.
        has(limit(|facts| facts.server_cpu_pct = vec![180.0]), Kind::Healthy, "nobody looked");
        has(
            limit(|facts| facts.line_rate_share = Some(0.96)),
            Kind::Healthy,
            "The network was the limit: 96 %",
        );
        has(
            limit(|facts| (facts.server_cpu_pct, facts.offered_ops_per_sec) = (vec![50.0], Some(4e7))),
            Kind::Healthy,
            "The offered 40,000,000 op/s were kept.",
        );
        has(limit(|facts| facts.series = vec![4e7]), Kind::Healthy, "fewer than 4 seconds");
    }

    /// Goal: several things are all told, in a fixed order. Method: everything at once.
    #[test]
    fn all_that_is_wrong_is_told() {
        let facts = RunFacts {
            client_busy_share: Some(1.0),
            series: [[1e6; 5], [2e6; 5]].concat(),
            offered_ops_per_sec: Some(1e8),
            due_ops_per_sec: Some(1e8),
            due_answered_per_sec: Some(4e7),
            losses: Some(Losses {
                nic: 1_000,
                softnet: 2_000,
                socket: 3_000,
                port: 4_000,
                session: 5_000,
                late: 0,
            }),
            stolen_share: Some(0.2),
            core_to_core_after_ns: Some(500.0),
            ..healthy()
        };
        let expected = [
            Kind::ClientLimited,
            Kind::NotStationary,
            Kind::BehindSchedule,
            Kind::CpuStolen,
            Kind::CoresMoved,
            Kind::LossAtNic,
            Kind::LossAtSoftnet,
            Kind::LossAtSocket,
            Kind::LossAtPort,
            Kind::LossAtSession,
        ];
        assert_eq!(kinds(&facts), expected);
        let networked = RunFacts { line_rate_share: Some(1.0), stolen_share: Some(0.2), ..healthy() };
        assert_eq!(kinds(&networked), [Kind::CpuStolen, Kind::NetworkLimited]);
    }

    /// Goal: nothing known, or nonsense, is judged without nonsense. Method: defaults, zeros and what is no number.
    #[test]
    fn nothing_is_made_of_nothing() {
        assert_eq!(kinds(&RunFacts::default()), [Kind::Healthy]);
        let still = RunFacts {
            series: vec![0.0; 20],
            due_ops_per_sec: Some(0.0),
            due_answered_per_sec: Some(0.0),
            ..RunFacts::default()
        };
        assert_eq!(kinds(&still), [Kind::Healthy]);
        let stopped = RunFacts { series: [[1e6; 10], [0.0; 10]].concat(), ..RunFacts::default() };
        assert_eq!(kinds(&stopped), [Kind::NotStationary]);
        let nonsense = RunFacts {
            series: vec![f64::NAN; 20],
            client_busy_share: Some(f64::NAN),
            server_busy_share: Some(f64::NAN),
            line_rate_share: Some(f64::NAN),
            stolen_share: Some(f64::NAN),
            others_share: Some(f64::NAN),
            due_ops_per_sec: Some(f64::NAN),
            due_answered_per_sec: Some(f64::NAN),
            server_cpu_pct: vec![f64::NAN],
            core_to_core_before_ns: Some(f64::NAN),
            core_to_core_after_ns: Some(0.0),
            ..RunFacts::default()
        };
        assert_eq!(kinds(&nonsense), [Kind::Healthy]);
    }

    #[test]
    fn kinds_are_told_in_lower_case() {
        for (kind, name) in [
            (Kind::Healthy, "healthy"),
            (Kind::ClientLimited, "client-limited"),
            (Kind::NotStationary, "not-stationary"),
            (Kind::LossAtNic, "loss-at-nic"),
            (Kind::CpuStolen, "cpu-stolen"),
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
        let verdict = Verdict::new(Kind::Crowded, "So it is.".to_owned());
        let text = serde_json::to_string(&verdict).unwrap();
        assert_eq!(text, r#"{"kind":"crowded","text":"So it is."}"#);
        assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict);
    }

    /// Goal: a rank sum is what the tables say. Method: cases worked out by hand, with and without equal values.
    #[test]
    fn ranks_are_summed() {
        let near = |got: f64, wanted: f64| assert!((got - wanted).abs() < 1e-3, "{got} {wanted}");
        near(rank_deviations(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]), 2.3094);
        near(rank_deviations(&[5.0, 6.0, 7.0, 8.0], &[1.0, 2.0, 3.0, 4.0]), -2.3094);
        near(rank_deviations(&[1.0, 4.0], &[2.0, 3.0]), 0.0);
        near(rank_deviations(&[1.0, 2.0, 2.0], &[2.0, 2.0, 3.0]), 8.0 / 6.0 / 5.25_f64.sqrt() * 1.875);
        near(rank_deviations(&[7.0; 5], &[7.0; 5]), 0.0);
    }

    /// Goal: a steady run is rarely called otherwise, whatever its noise, and one that changes nearly always. Method: many random
    /// series of a seed, with normal noise and with rare outliers; the noise is such that halves often differ by more than 5 %, so
    /// that ranks decide.
    #[test]
    fn drift_is_told_from_noise() {
        const SEED: u64 = 7;
        const SERIES: usize = 4_000;
        println!("seed {SEED}");
        let mut random = SmallRng::seed_from_u64(SEED);
        for seconds in [8, 9, 10, 15, 30, 60] {
            let mut share = |noise: f64, outliers: f64, change: fn(f64) -> f64| {
                let normal = Normal::new(1.0, noise).unwrap();
                let mut series = || -> Vec<f64> {
                    let second = |index: usize| {
                        let value = normal.sample(&mut random) * change(index as f64 / (seconds - 1) as f64);
                        if random.random_bool(outliers) { value * 0.2 } else { value }
                    };
                    (0..seconds).map(second).collect()
                };
                (0..SERIES).filter(|_| drift(&series()).is_some()).count() as f64 / SERIES as f64
            };
            let quiet = share(0.02, 0.0, |_| 1.0);
            let noisy = share(0.3, 0.0, |_| 1.0);
            let spiky = share(0.02, 0.1, |_| 1.0);
            let step = share(0.02, 0.0, |at| if at < 0.5 { 1.0 } else { 0.85 });
            let trend = share(0.02, 0.0, |at| 1.0 - 0.3 * at);
            println!(
                "{seconds} s: quiet {quiet:.4}, noisy {noisy:.4}, with outliers {spiky:.4}; step {step:.3}, trend {trend:.3}"
            );
            // 1 of 35 at 4 + 4; three standard deviations of so many draws are 0.008.
            assert!(quiet < 0.004 && noisy < 0.0372 && spiky < 0.0372);
            assert!(step > 0.9 && trend > 0.9);
        }
    }
}
