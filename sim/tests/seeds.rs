//! Whole runs: that they are clean, that each fault happens in them, and that they can be repeated.

use std::sync::atomic::AtomicBool;

use linerate_sim::{
    campaign::run_seeds,
    run::{Plan, run_seed},
};

/// Fewer operations than usual: these tests also run without optimisation.
const PLAN: Plan = Plan { ops: 500, events: None };

/// Goal: the system withstands all faults, and all faults happen. Method: seeds, of which no operation may be wrong and
/// none may be left, and the sum of what befell them.
#[test]
fn seeds_are_clean_and_meet_every_fault() {
    let summary = run_seeds(0..30, &PLAN, 2, &AtomicBool::new(false), |report| {
        assert!(report.is_clean(), "seed {}: {:?}", report.seed, report.failure());
        assert!(report.ops >= PLAN.ops.into(), "seed {}: {} operations", report.seed, report.ops);
        let ends = report.ends;
        let all = ends.results + ends.not_executed + ends.unknown + ends.abandoned;
        assert_eq!(all, report.ops, "seed {}", report.seed);
    });
    assert!(summary.complete && summary.is_clean());
    assert_eq!(summary.seeds, 30);
    for (name, count) in &summary.faults {
        assert!(*count >= 5, "{name}: {count}");
    }
    let sound = summary.ops_with_result as f64 / summary.ops as f64;
    assert!(sound > 0.5, "only {sound} of the operations had a result");
    assert!(summary.ops_unknown > 100 && summary.ops_not_executed > 100);
}

/// Goal: what was seen once can be seen again. Method: each seed twice, compared in all that is reported.
#[test]
fn a_seed_repeats_itself() {
    for seed in 100..106 {
        let report = run_seed(seed, &PLAN);
        assert_eq!(report, run_seed(seed, &PLAN));
        assert_ne!(report.trace_hash, run_seed(seed + 1, &PLAN).trace_hash);
    }
}

/// Goal: the hash of a campaign is that of its seeds, whoever ran them. Method: one thread and three.
#[test]
fn threads_do_not_matter() {
    let plan = Plan { ops: 100, ..PLAN };
    let run = |threads| run_seeds(7..20, &plan, threads, &AtomicBool::new(false), |_| ()).trace_hash;
    let alone = run(1);
    assert_eq!(alone, run(3));
    assert_ne!(alone, run_seeds(7..19, &plan, 1, &AtomicBool::new(false), |_| ()).trace_hash);
}

#[test]
fn a_campaign_that_is_stopped_says_so() {
    let summary = run_seeds(0..1_000_000, &PLAN, 1, &AtomicBool::new(true), |_| ());
    assert!(!summary.complete && summary.seeds == 0);
}
