//! One seed, from its number to what is to be said of it.

use std::{
    any::Any,
    cell::RefCell,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, set_hook},
    time::Duration,
};

use linerate_dataplane::sim::{FaultCounters, mix_bytes};

use crate::{
    check::{EndCounts, Rule, Violation},
    world::World,
};

/// Takes what happens: time since the start of the run, and what.
pub type Events = fn(Duration, fmt::Arguments<'_>);

/// What is to be done with each seed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Operations to push at least, over all clients.
    pub ops: u32,
    /// Told of everything that happens; `None` when nobody wants to know.
    pub events: Option<Events>,
}

/// Operations of a seed unless told otherwise.
pub const OPS_DEFAULT: u32 = 2_000;

impl Default for Plan {
    fn default() -> Self {
        Self { ops: OPS_DEFAULT, events: None }
    }
}

/// Number of kinds of faults.
pub const FAULT_KINDS: usize = 26;

/// What has gone wrong by design, by name; always the same names in the same order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultTally(pub [(&'static str, u64); FAULT_KINDS]);

/// What became of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedReport {
    /// The seed.
    pub seed: u64,
    /// Operations that were pushed.
    pub ops: u64,
    /// How they ended.
    pub ends: EndCounts,
    /// Datagrams that were sent.
    pub datagrams: u64,
    /// Virtual time that the run took.
    pub elapsed: Duration,
    /// What went wrong by design.
    pub faults: FaultTally,
    /// Rules that were broken, as far as they were kept.
    pub violations: Vec<Violation>,
    /// How many there were.
    pub violation_count: u64,
    /// Who did not come to an end once all was well; `None` when all did.
    pub stuck: Option<String>,
    /// Hash of every delivery and every outcome.
    pub trace_hash: u64,
}

impl SeedReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.violation_count == 0 && self.stuck.is_none()
    }

    /// The first thing that is wrong, in a line.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let stuck = self.stuck.as_ref().map(|who| format!("Stuck: {who}"));
        self.violations.first().map(ToString::to_string).or(stuck)
    }
}

/// Runs one seed. A panic of the code under test counts as a violation.
#[must_use]
pub fn run_seed(seed: u64, plan: &Plan) -> SeedReport {
    let mut world = World::new(seed, *plan);
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err();
    if let Some(payload) = panicked {
        world.checker.violate(Rule::Panic, panic_message(payload.as_ref()));
    }
    world.cut_off();
    let network = world.network().counters();
    let mut report = SeedReport {
        seed,
        ops: u64::from(world.checker.next_tag()),
        ends: world.checker.ends(),
        datagrams: network.sent,
        elapsed: world.now(),
        faults: tally(&network, &world),
        violations: world.checker.violations().to_vec(),
        violation_count: world.checker.violation_count(),
        stuck: world.stuck.clone(),
        trace_hash: world.trace_hash(),
    };
    // What a panic has left in disorder may panic again when it is dropped: then for the same reason.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(world)));
    for violation in &report.violations {
        report.trace_hash = mix_bytes(report.trace_hash, violation.what.as_bytes());
    }
    report
}

fn tally(network: &FaultCounters, world: &World) -> FaultTally {
    let of_network = [
        ("drop", network.lost),
        ("duplicate", network.duplicated),
        ("reorder", network.reordered),
        ("delay", network.delayed),
        ("truncate", network.truncated),
        ("flip", network.corrupted),
        ("cross_deliver", network.misdelivered),
        ("spoof", network.spoofed),
        ("replay", network.replayed),
        ("clogged", network.clogged),
        ("parted", network.parted),
        ("rx_overflow", network.overflowed),
        ("oversized", network.oversized),
    ];
    let of_nodes = world.node_faults().map(|(fault, count)| (fault.name(), count));
    let mut tally = FaultTally::default();
    for (entry, counted) in tally.0.iter_mut().zip(of_network.into_iter().chain(of_nodes)) {
        *entry = counted;
    }
    tally
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Has panics remembered for [`run_seed`] with the place where they happened, instead of printed.
pub fn quiet_panics() {
    set_hook(Box::new(|info| LAST_PANIC.with_borrow_mut(|last| *last = info.to_string())));
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let noted = LAST_PANIC.with_borrow_mut(std::mem::take);
    if !noted.is_empty() {
        return noted.replace('\n', " ");
    }
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}
