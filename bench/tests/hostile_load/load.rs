//! The checked load that goes on while the server is attacked: two client threads and the bench's own check.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use linerate_bench::{
    check::{
        Checker,
        versions::{Snapshot, VersionTable},
    },
    load::{Lane, LoadPlan, LoadReport, LoadTimes, preload, run_load},
    options::RunOptions,
    workload::{Stream, Workload, draw_streams},
};
use linerate_client::Session;
use linerate_dataplane::{UdpConfig, UdpPort};
use linerate_proto::wire::Statistic;
use linerate_server::stats::sum;

use crate::attack::open_all;

/// Client threads.
pub(crate) const THREADS: usize = 2;

/// Operations drawn per thread; they are repeated.
const STREAM_LEN: usize = 1 << 16;

/// Longer than any attack lasts: the load is stopped when that is over.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// Sessions and streams of the load.
pub(crate) struct Load {
    options: RunOptions,
    sessions: Vec<Session<UdpPort>>,
    streams: Vec<Stream>,
}

impl Load {
    /// Opens the sessions, stores the records, and begins the check of what the server says to `control` that it holds.
    pub(crate) fn prepare(cores: &[SocketAddr], control: &mut Session<UdpPort>) -> (Self, Checker) {
        let options = RunOptions {
            workload: Workload::A,
            records: 2_000,
            value_len: "64-256".parse().unwrap(),
            threads: THREADS as u16,
            batch: 32,
            window: 4,
            check: true,
            ..RunOptions::defaults()
        };
        let table = VersionTable::private(options.table_shape(cores), 1, &snapshot(control)).unwrap();
        let checker = Checker::new(table, THREADS, options.value_len.lens());
        let open = |number: usize| {
            let port = UdpPort::connect(cores, UdpConfig::default()).unwrap();
            let mut session = Session::attach(port, cores, options.session(), 102 + number as u64);
            open_all(&mut session);
            session
        };
        let mut sessions: Vec<_> = (0..THREADS).map(open).collect();
        let never = AtomicBool::new(false);
        preload(&mut sessions[0], options.records, &options.value_len, Some(&checker), &never, |_| {})
            .unwrap();
        let streams = draw_streams(&options.law(), THREADS, STREAM_LEN, 1, |_| {});
        (Self { options, sessions, streams }, checker)
    }

    /// Runs the load until `body` returns, which is given the number of operations that have ended so far.
    pub(crate) fn run_while(&mut self, checker: &Checker, body: impl FnOnce(&AtomicU64)) -> Vec<LoadReport> {
        let (live, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let options = &self.options;
        thread::scope(|scope| {
            let threads: Vec<_> = self
                .sessions
                .iter_mut()
                .zip(&self.streams)
                .zip(1..)
                .map(|((session, stream), client)| {
                    let plan = LoadPlan {
                        process: checker.process(),
                        client,
                        batch: options.batch.into(),
                        batches_in_flight: usize::from(options.window),
                        pace: None,
                        value_len: options.value_len.clone(),
                        verify: true,
                        // There are more threads than CPUs.
                        sleeps: true,
                    };
                    let times = LoadTimes {
                        warmup: Duration::ZERO,
                        duration: FOR_EVER,
                        interval: FOR_EVER,
                        patience: Duration::from_secs(5),
                    };
                    let (live, stop) = (&live, &stop);
                    scope.spawn(move || {
                        let mut total = LoadReport::default();
                        let mut lanes = [Lane::new(session, stream.clone(), plan, Some(checker))];
                        let mut add = |_, report: LoadReport| {
                            total.absorb(&report);
                            LoadReport::default()
                        };
                        run_load(&mut lanes, &times, live, stop, &mut add).unwrap();
                        total
                    })
                })
                .collect();
            {
                // Also when the body panics: the threads would run for ever.
                let _stops = StopAtEnd(&stop);
                body(&live);
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Datagrams that the load has handed to the kernel.
    pub(crate) fn sent(&self) -> u64 {
        self.sessions.iter().map(|session| session.counters().port.tx_datagrams).sum()
    }

    /// Sessions that the load has opened: with each core one per thread, unless one was lost.
    pub(crate) fn sessions_opened(&self) -> u64 {
        self.sessions.iter().map(|session| session.counters().flows.sessions).sum()
    }
}

/// What the server says of its data.
pub(crate) fn snapshot(control: &mut Session<UdpPort>) -> Snapshot {
    let answers = control.statistics(&mut |_| {}).unwrap();
    let values = sum(answers.into_iter().map(|answer| *answer.expect("each core answers")));
    let epochs = control.cores().filter_map(|(_, info)| info).map(|info| info.data_epoch);
    Snapshot { version: values[Statistic::Version as usize], data_epochs: epochs.collect() }
}

/// Sets a flag when it goes.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
