//! Whether the store is linearizable, asked while the load runs, of every operation.
//!
//! Three layers, none of which keeps a history:
//!
//! 1. **Versions**, every operation. Every answer carries the version of its key, and a table ([`versions`]) holds the
//!    newest that anybody has seen of each record: `lo` is read from it when an operation is handed over, and then a
//!    read must bring at least `lo`, a write more. This accepts only linearizable histories in which values are what
//!    their versions say; together with the integrity of every value (record, writer, length, fill) nothing else is left
//!    to lie about but the versions themselves. It costs one look into the table at either end.
//! 2. **Audit**, at the end: the servers' versions have grown by what was acknowledged, and by no more than what was
//!    acknowledged or may have happened. A write that was lost or done twice shows here.
//! 3. **Zones**, on sampled keys: what clients saw and when ([`window`]), judged without looking at a version
//!    ([`zone`]).

pub mod versions;
pub mod window;
pub mod zone;

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use linerate_client::{Ended, Outcome};
use serde::Serialize;

use crate::{
    check::{
        versions::{Snapshot, Totals, VersionTable, entry, parts},
        window::{Choice, Lane, LaneKeeper, LaneLog, withdraw},
        zone::{Event, NEVER, conflicts},
    },
    value::{writer, writer_of},
    workload::ValueLen,
};

/// Shortest value that says who wrote it.
const WRITER_END: usize = 16;

/// Thread of a writer that stands for "absent": the real ones are below 1,025.
const NOBODY: u16 = 2_047;

/// What the check says of a run. The names are a contract.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Operations whose version was checked, warm-up included.
    pub ops_checked: u64,
    /// Operations that the zone check has judged.
    pub sampled_ops: u64,
    /// What went wrong, of all kinds.
    pub violations: u64,
    /// The first of them in words.
    pub first_violation: Option<String>,
    /// Windows of sampled operations that were judged.
    pub windows: u64,
    /// Data epochs of the servers that were seen: more than there are servers when one has lost its contents.
    pub data_epochs: u64,
    /// Why `sampled_ops` is 0, if it must be.
    pub not_sampled: Option<&'static str>,
    /// The audit of the writes.
    pub audit: Audit,
}

/// Whether the writes add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Puts acknowledged to all processes that share the table.
    pub acknowledged: u64,
    /// Puts whose outcome nobody knows.
    pub unknown: u64,
    /// Writes that the servers say took effect.
    pub grown: u64,
    /// Why the three could not be compared, if they could not.
    pub impossible: Option<String>,
}

/// What can be wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// A read brought an older version than was known before it began.
    StaleRead { found: u64, known: u64 },
    /// A write has a version that is not newer than what was known before it began.
    StaleWrite { found: u64, known: u64 },
    /// The version is greater than any can be.
    Version(u64),
    /// A value was never put at this key.
    Value,
    /// A get was acknowledged like a put, or a put answered like a get.
    Kind { is_put: bool },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = |entry| {
            let (incarnation, version) = parts(entry);
            format!("version {version} of data epoch {incarnation}")
        };
        match *self {
            Self::StaleRead { found, known } => {
                write!(f, "a get brought {} when {} was known before it", entry(found), entry(known))
            }
            Self::StaleWrite { found, known } => {
                write!(f, "a put became {} when {} was known before it", entry(found), entry(known))
            }
            Self::Version(version) => write!(f, "version {version} is beyond all that there can be"),
            Self::Value => write!(f, "a get brought a value that was never put there"),
            Self::Kind { is_put: true } => write!(f, "a put was answered like a get"),
            Self::Kind { is_put: false } => write!(f, "a get was answered like a put"),
        }
    }
}

/// What all client threads of this process share.
#[derive(Debug)]
pub struct Checker {
    table: VersionTable,
    hottest: Lane,
    sample: Lane,
    is_sampled: bool,
    violations: AtomicU64,
    first_violation: Mutex<Option<String>>,
    /// The clock of all logs.
    started: Instant,
    ops_checked: AtomicU64,
    acknowledged: AtomicU64,
    unknown: AtomicU64,
}

impl Checker {
    /// A checker for so many client threads.
    #[must_use]
    pub fn new(table: VersionTable, threads: usize, value_len: ValueLen) -> Self {
        Self {
            table,
            hottest: Lane::new(Choice::Hottest, threads),
            sample: Lane::new(Choice::Sample, threads),
            is_sampled: value_len.min() >= WRITER_END,
            violations: AtomicU64::new(0),
            first_violation: Mutex::new(None),
            started: Instant::now(),
            ops_checked: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }
    }

    /// What values name as the process that wrote them.
    #[must_use]
    pub const fn process(&self) -> u16 {
        (self.table.process() % (1 << 13)) as u16
    }

    /// An answer to the preload. It puts each record once, so that only its own writes are known to have gone before:
    /// each must have a version.
    pub fn preloaded(&self, record: u32, ended: &Ended<'_>) {
        let acknowledged = ended.outcome == Outcome::Done;
        self.acknowledged.fetch_add(u64::from(acknowledged), Relaxed);
        self.unknown.fetch_add(u64::from(ended.outcome == Outcome::OutcomeUnknown), Relaxed);
        let Some(incarnation) = self.table.incarnation(ended.data_epoch).filter(|_| acknowledged) else {
            return;
        };
        match entry(incarnation, ended.version) {
            None => self.report(record, Wrong::Version(ended.version)),
            Some(entry) => {
                if ended.version == 0 {
                    self.report(record, Wrong::StaleWrite { found: entry, known: entry });
                }
                self.table.raise(record, entry);
            }
        }
    }

    #[cold]
    fn report(&self, record: u32, wrong: Wrong) {
        self.report_text(|| format!("record {record}: {wrong}"));
    }

    fn report_text(&self, text: impl FnOnce() -> String) {
        self.violations.fetch_add(1, Relaxed);
        // A thread that panicked while it held the lock ends the run anyway.
        self.first_violation.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(text);
    }

    /// Ends the check of this process when all its threads have ended. `snapshot` asks the servers; it is called when no
    /// other process has anything in flight any more.
    ///
    /// # Errors
    /// When the servers could not be asked, or the other processes.
    pub fn finish(
        &self,
        watch: Watch<'_>,
        snapshot: impl FnOnce() -> anyhow::Result<Snapshot>,
    ) -> anyhow::Result<CheckReport> {
        let (sampled_ops, windows) = watch.finish();
        let totals = self.table.leave(self.acknowledged.load(Relaxed), self.unknown.load(Relaxed))?;
        let audit = match totals {
            None => Audit {
                impossible: Some("the last process that shares the versions does it".to_owned()),
                ..Audit::default()
            },
            Some(totals) => self.audit(totals, &snapshot()?),
        };
        Ok(CheckReport {
            ops_checked: self.ops_checked.load(Relaxed),
            sampled_ops,
            violations: self.violations.load(Relaxed),
            first_violation: self.first_violation.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            windows,
            data_epochs: self.table.epochs() as u64,
            not_sampled: (!self.is_sampled)
                .then_some("values of less than 16 bytes do not say who wrote them"),
            audit,
        })
    }

    fn audit(&self, totals: Totals, end: &Snapshot) -> Audit {
        let Totals { acknowledged, unknown, version_at_start, epochs_at_start, missing, .. } = totals;
        for &epoch in &end.data_epochs {
            self.table.incarnation(epoch);
        }
        let impossible = if missing > 0 {
            Some(format!("{missing} of the processes that shared the versions ended without their totals"))
        } else if self.table.epochs() > epochs_at_start {
            Some("a server lost its contents during the run".to_owned())
        } else {
            None
        };
        let grown = end.version.wrapping_sub(version_at_start);
        if impossible.is_none() && !(acknowledged..=acknowledged + unknown).contains(&grown) {
            self.report_text(|| {
                format!(
                    "{grown} writes took effect, but {acknowledged} were acknowledged and {unknown} more may have \
                     happened: some were lost or done twice, or somebody writes who does not share the check"
                )
            });
        }
        Audit { acknowledged, unknown, grown, impossible }
    }
}

/// The slow part of the check: windows and zones, done by the thread that watches the others.
#[derive(Debug)]
pub struct Watch<'a> {
    checker: &'a Checker,
    keepers: [LaneKeeper<'a>; 2],
    events: Vec<Event>,
    sampled_ops: u64,
    windows: u64,
}

impl<'a> Watch<'a> {
    /// The watch of `checker`; there is one.
    #[must_use]
    pub const fn new(checker: &'a Checker) -> Self {
        let keepers = [LaneKeeper::new(&checker.hottest), LaneKeeper::new(&checker.sample)];
        Self { checker, keepers, events: Vec::new(), sampled_ops: 0, windows: 0 }
    }

    /// Does what is due; to be called some times a second.
    pub fn turn(&mut self, now: Instant) {
        if !self.checker.is_sampled {
            return;
        }
        for lane in 0..self.keepers.len() {
            if self.keepers[lane].turn(now, rand::random(), &mut self.events) {
                self.judge();
            }
        }
    }

    fn judge(&mut self) {
        self.windows += 1;
        self.sampled_ops += self.events.len() as u64;
        for conflict in conflicts(&mut self.events) {
            self.checker.report_text(|| conflict.to_string());
        }
        self.events.clear();
    }

    /// Judges what is left; returns the number of operations and of windows judged.
    fn finish(mut self) -> (u64, u64) {
        for lane in 0..self.keepers.len() {
            self.keepers[lane].finish(&mut self.events);
            if !self.events.is_empty() {
                self.judge();
            }
        }
        (self.sampled_ops, self.windows)
    }
}

/// Which log an operation is in, part of its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneNumber(u8);

impl LaneNumber {
    /// In none.
    pub const NONE: Self = Self(0);
    const HOTTEST: Self = Self(1);
    const SAMPLE: Self = Self(2);

    /// As two bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From two bits.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 3)
    }
}

/// An operation that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// Place of the operation, as when it was pushed.
    pub place: usize,
    /// Its record.
    pub record: u32,
    /// Whether it was a put; otherwise it was a get.
    pub is_put: bool,
    /// As when it was pushed.
    pub lane: LaneNumber,
    /// Whether the value it brought, if any, is not one that was put at its key.
    pub is_wrong: bool,
}

/// What is remembered of an operation in flight.
#[derive(Clone, Copy, Debug, Default)]
struct InFlight {
    /// Newest entry of its record when it was pushed.
    lo: u64,
    /// Its number in the log.
    number: u32,
}

/// The part of one client thread.
#[derive(Debug)]
pub struct ThreadCheck<'a> {
    checker: &'a Checker,
    in_flight: Box<[InFlight]>,
    hottest: LaneLog<'a>,
    sample: LaneLog<'a>,
    /// Data epoch of the last answer, and its incarnation; `None` when it has no number.
    epoch: (u64, Option<u16>),
    ops_checked: u64,
    acknowledged: u64,
    unknown: u64,
}

impl<'a> ThreadCheck<'a> {
    /// The check of the thread with this index, which has at most `places` operations in flight.
    #[must_use]
    pub fn new(checker: &'a Checker, thread: usize, places: usize) -> Self {
        Self {
            checker,
            in_flight: vec![InFlight::default(); places].into(),
            hottest: LaneLog::new(&checker.hottest, thread),
            sample: LaneLog::new(&checker.sample, thread),
            epoch: (0, None),
            ops_checked: 0,
            acknowledged: 0,
            unknown: 0,
        }
    }

    /// Looks after the windows; to be called between bursts of operations.
    #[inline]
    pub fn turn(&mut self) {
        self.hottest.look();
        self.sample.look();
    }

    /// Before an operation on `record` is pushed: what is known of it, and which log it belongs in.
    #[inline]
    pub fn before_push(&self, record: u32) -> (u64, LaneNumber) {
        let lane = if self.hottest.wants(record) {
            LaneNumber::HOTTEST
        } else if self.sample.wants(record) {
            LaneNumber::SAMPLE
        } else {
            LaneNumber::NONE
        };
        (self.checker.table.newest(record), lane)
    }

    /// An operation was pushed, of which [`before_push`](Self::before_push) said `lo` and `lane`. `written` names the
    /// value of a put.
    #[inline]
    pub fn pushed(&mut self, place: usize, record: u32, written: Option<u64>, lo: u64, lane: LaneNumber) {
        self.in_flight[place].lo = lo;
        if lane != LaneNumber::NONE {
            self.log(place, record, written, lane);
        }
    }

    /// The operation is not on its way before this thread polls, so that this is early enough to say that it begins.
    #[cold]
    fn log(&mut self, place: usize, record: u32, written: Option<u64>, lane: LaneNumber) {
        let event = Event {
            start_ns: self.now_ns(),
            end_ns: NEVER,
            value: written.unwrap_or(0),
            record,
            is_write: written.is_some(),
        };
        self.in_flight[place].number = self.lane(lane).begin(event) as u32;
    }

    /// Looks at an answer.
    #[inline]
    pub fn ended(&mut self, answered: Answered, ended: &Ended<'_>) {
        if self.epoch.0 != ended.data_epoch {
            self.epoch = (ended.data_epoch, self.checker.table.incarnation(ended.data_epoch));
        }
        if answered.lane != LaneNumber::NONE {
            self.log_end(answered, ended);
        }
        let record = answered.record;
        let is_done = match ended.outcome {
            Outcome::Value(_) | Outcome::NotFound => false,
            Outcome::Done => true,
            Outcome::NotExecuted(_) => return,
            Outcome::OutcomeUnknown => {
                self.unknown += u64::from(answered.is_put);
                return;
            }
        };
        self.ops_checked += 1;
        self.acknowledged += u64::from(is_done);
        if answered.is_put != is_done {
            self.checker.report(record, Wrong::Kind { is_put: answered.is_put });
        }
        if answered.is_wrong {
            self.checker.report(record, Wrong::Value);
        }
        let Some(incarnation) = self.epoch.1 else { return };
        let Some(found) = entry(incarnation, ended.version) else {
            self.checker.report(record, Wrong::Version(ended.version));
            return;
        };
        let known = self.in_flight[answered.place].lo;
        if is_done && found <= known {
            self.checker.report(record, Wrong::StaleWrite { found, known });
        } else if found < known {
            self.checker.report(record, Wrong::StaleRead { found, known });
        }
        self.checker.table.raise(record, found);
    }

    #[cold]
    fn log_end(&mut self, answered: Answered, ended: &Ended<'_>) {
        let now_ns = self.now_ns();
        let incarnation = self.epoch.1.unwrap_or(0);
        let number = self.in_flight[answered.place].number as usize;
        self.lane(answered.lane).end(number, |event| match ended.outcome {
            Outcome::Value(value) => match writer_of(value) {
                Some(writer) => (event.value, event.end_ns) = (writer, now_ns),
                // Of a length that nobody has put, which has been noticed.
                None => withdraw(event),
            },
            // Nothing is deleted: only a server that has lost its contents can say so again.
            Outcome::NotFound => {
                (event.value, event.end_ns) = (writer(incarnation, NOBODY, incarnation.into()), now_ns);
            }
            Outcome::Done => event.end_ns = now_ns,
            Outcome::NotExecuted(_) => withdraw(event),
            Outcome::OutcomeUnknown => {}
        });
    }

    const fn lane(&mut self, lane: LaneNumber) -> &mut LaneLog<'a> {
        if lane.0 == LaneNumber::HOTTEST.0 { &mut self.hottest } else { &mut self.sample }
    }

    fn now_ns(&self) -> u64 {
        self.checker.started.elapsed().as_nanos() as u64
    }
}

impl Drop for ThreadCheck<'_> {
    fn drop(&mut self) {
        self.checker.ops_checked.fetch_add(self.ops_checked, Relaxed);
        self.checker.acknowledged.fetch_add(self.acknowledged, Relaxed);
        self.checker.unknown.fetch_add(self.unknown, Relaxed);
    }
}
