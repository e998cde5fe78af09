//! A live server under fire: hostile datagrams while a checked load runs. Alone in its process, whose memory it watches.
//!
//! `LINERATE_HOSTILE_DATAGRAMS` says how many datagrams the attack has, `LINERATE_HOSTILE_SEED` which ones.

mod attack;
mod load;
mod mutation;
mod recording;
mod socket;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use linerate_bench::check::{Elsewhere, Watch, versions::Snapshot};
use linerate_dataplane::pin::allowed_cores;
use linerate_proto::{
    DropReason,
    wire::{STAT_COUNT, Statistic},
};
use linerate_server::{
    Server, ServerConfig,
    stats::{accounted, drops, drops_in_words, process_rss_len},
};

use crate::{
    attack::{Attack, attach},
    load::{Load, snapshot},
};

/// Cores of the server, so that there are keys of another core.
const CORES: usize = 2;

/// Memory for stores and sessions of all cores.
const MEMORY_LEN: usize = 64 << 20;

/// Datagrams of the attack, unless told otherwise: a debug build sends them in some seconds.
const DATAGRAMS: u64 = 200_000;

/// Parts of the attack, in each of which the load must make progress.
const PARTS: u64 = 8;

/// Parts in which the server and this test touch the memory that they were given.
const WARMUP_PARTS: usize = 2;

/// What resident memory may grow by after that, beside what the stores and the sessions say that they hold: pages of the
/// arenas that a short run has not been round to yet (measured: up to 15 MiB), buffers, and what the allocator keeps. Of
/// ten million datagrams none may leave three bytes behind.
const GROWTH_MAX: u64 = 24 << 20;

/// How long a busy machine may take to count what was sent.
const PATIENCE: Duration = Duration::from_secs(20);

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}=`{text}`: give a whole number"))
    })
}

/// Goal: whoever can send datagrams can do no more than be counted, and a session in bad hands does no harm beyond its
/// own operations. Method: random, mutated and replayed datagrams, floods of handshakes and abandoned sessions against
/// both cores, while two checked client threads read and write. The load makes progress in every part of the attack and
/// its check finds nothing: the attackers' own writes, known from the answers, are all that others have written. No
/// source without a session gets more than it has sent, memory stays bounded, and every datagram sent has arrived and is
/// accounted for by the counters.
#[test]
fn hostile_datagrams_do_no_more_than_move_counters() {
    let datagrams = setting("LINERATE_HOSTILE_DATAGRAMS", DATAGRAMS);
    let seed = setting("LINERATE_HOSTILE_SEED", 1);
    println!("seed {seed}, {datagrams} datagrams");
    let cpus = allowed_cores().unwrap();
    let config = ServerConfig {
        port: 0,
        cpus: cpus.iter().copied().cycle().take(CORES).collect(),
        memory_len: MEMORY_LEN,
        tcp: false,
        ..ServerConfig::default()
    };
    let server = Server::start(&config).unwrap();
    let parts = server.plan().cores.iter();
    let sessions_len_max = parts.map(|core| core.sessions_len + core.staging_len).sum::<usize>() as u64;
    let mut control = attach(server.addrs());
    let (mut load, checker) = Load::prepare(server.addrs(), &mut control);
    let mut watch = Watch::new(&checker);
    let mut attack = Attack::new(server.addrs(), control, seed);
    let begun = Instant::now();
    let mut footprints = Vec::new();

    let reports = load.run_while(&checker, |live| {
        for part in 1..=PARTS {
            if part == PARTS {
                attack.fill();
            }
            let before = live.load(Ordering::Relaxed);
            while attack.sent() < datagrams * part / PARTS {
                attack.round();
                watch.turn(Instant::now());
            }
            let progress = live.load(Ordering::Relaxed) - before;
            let stats = server.stats();
            println!(
                "part {part}: {progress} operations of the load, {} MiB resident",
                process_rss_len() >> 20
            );
            assert!(progress > 0, "the load stands still in part {part}: {}", drops_in_words(&stats));
            assert!(!server.has_failed(), "a core has ended");
            assert!(sessions_len(&stats) <= sessions_len_max, "{} bytes of sessions", sessions_len(&stats));
            footprints.push(footprint(&stats));
        }
    });
    let attacked = begun.elapsed();
    attack.drain();
    attack.assert_nothing_gained();
    let writes = attack.effective_writes();
    let snapshot = snapshot(attack.control());
    // Wrong versions are for the audit to find.
    let own = Snapshot { version: snapshot.version.wrapping_sub(writes), ..snapshot };
    let check = checker.finish(watch, Elsewhere::Nobody, || Ok(own)).unwrap();
    println!("{check:?}, {writes} writes of the attackers");
    assert_eq!(check.violations, 0, "{:?}", check.first_violation);
    assert!(
        check.audit.impossible.is_none() && check.audit.acknowledged > 0 && check.sampled_ops > 0,
        "{check:?}"
    );
    for report in &reports {
        assert_eq!((report.wrong_values, report.errors, report.outcome_unknown), (0, 0, 0));
    }
    assert_eq!(load.sessions_opened(), (load::THREADS * CORES) as u64, "nobody can end a session of others");

    // Nothing is on its way any more, once all that was sent has been counted.
    let sent = attack.all_sent() + load.sent();
    let (per_core, received) = settled(&server, sent);
    let stats = server.stats();
    println!("{sent} datagrams sent by all in {attacked:.1?}, {received} received");
    println!("dropped: {}", drops_in_words(&stats));
    println!("{}", attack.table());
    for values in &per_core {
        assert_eq!(accounted(values), values[Statistic::RxDatagrams as usize], "{values:?}");
    }
    if stats[Statistic::RxOverflowDrops as usize] == 0 {
        assert_eq!(received, sent, "datagrams that nobody has dropped are missing");
    } else {
        assert!(received < sent, "{received} received of {sent}");
    }
    for reason in DropReason::ALL {
        // A server waits for no answers, and only connections can use up all room.
        let unreachable = matches!(reason, DropReason::Unexpected | DropReason::NoRoom);
        let count = drops(&stats)[reason as usize];
        assert_eq!(count == 0, unreachable, "{count} datagrams were dropped for {}", reason.name());
    }
    for reached in [Statistic::Replays, Statistic::RequestsRefused, Statistic::SessionsFenced] {
        assert!(stats[reached as usize] > 0, "{reached:?}: the attack misses something");
    }

    let (accounted_before, rss_before) = footprints[WARMUP_PARTS - 1];
    let (accounted_after, rss_after) = footprints[PARTS as usize - 1];
    let growth = rss_after.saturating_sub(rss_before);
    let explained = accounted_after.saturating_sub(accounted_before);
    println!(
        "memory: {} sessions in {} KiB, {} KiB staged; {} KiB resident more than after the warm-up, {} KiB of them explained",
        stats[Statistic::Sessions as usize],
        stats[Statistic::SessionsBytes as usize] >> 10,
        stats[Statistic::StagedBytes as usize] >> 10,
        growth >> 10,
        explained >> 10
    );
    assert!(
        growth <= explained + GROWTH_MAX,
        "resident memory has grown by {growth} bytes, {explained} explained"
    );

    server.stop().unwrap();
}

/// Bytes of sessions and of what is staged in them.
const fn sessions_len(stats: &[u64; STAT_COUNT]) -> u64 {
    stats[Statistic::SessionsBytes as usize] + stats[Statistic::StagedBytes as usize]
}

/// What stores and sessions say that they hold, and what the process has, in bytes.
fn footprint(stats: &[u64; STAT_COUNT]) -> (u64, u64) {
    let stored = stats[Statistic::ItemsBytes as usize] + stats[Statistic::IndexBytes as usize];
    (stored + sessions_len(stats), process_rss_len())
}

/// Waits until the server has counted `sent` datagrams, or at least does not count any more; returns the statistics per
/// core and the datagrams received.
fn settled(server: &Server, sent: u64) -> (Vec<[u64; STAT_COUNT]>, u64) {
    let begun = Instant::now();
    loop {
        // Longer than statistics take to be published.
        std::thread::sleep(Duration::from_millis(200));
        let per_core = server.core_stats();
        let received = per_core.iter().map(|values| values[Statistic::RxDatagrams as usize]).sum();
        let at_rest =
            per_core.iter().all(|values| accounted(values) == values[Statistic::RxDatagrams as usize]);
        let overflowed = per_core.iter().any(|values| values[Statistic::RxOverflowDrops as usize] > 0);
        if at_rest && (received == sent || overflowed) || begun.elapsed() > PATIENCE {
            return (per_core, received);
        }
    }
}
