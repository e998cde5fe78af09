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
use serde::{Deserialize, Serialize};

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
    /// Added to the table's number of this process.
    process_first: u16,
}

/// Who else writes while a check runs, without sharing its versions: clients of other machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Elsewhere {
    /// Nobody.
    Nobody,
    /// Some, and this is what they have put; their records were stored after this check began.
    Counted {
        /// Puts acknowledged.
        acknowledged: u64,
        /// Puts whose outcome is unknown.
        unknown: u64,
    },
    /// Some, and one of them does the audit.
    Audits,
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
            process_first: 0,
        }
    }

    /// The same for a process with a number of its own: those that do not share a table may not write in the same name.
    #[must_use]
    pub fn counting_from(self, process: u16) -> Self {
        Self { process_first: process, ..self }
    }

    /// What values name as the process that wrote them.
    #[must_use]
    pub const fn process(&self) -> u16 {
        (self.table.process().wrapping_add(self.process_first as u64) % (1 << 13)) as u16
    }

    /// Puts of this process that were acknowledged, and those of unknown outcome.
    #[must_use]
    pub fn writes(&self) -> (u64, u64) {
        (self.acknowledged.load(Relaxed), self.unknown.load(Relaxed))
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

    /// Ends the check of this process when all its threads have ended, and those `elsewhere`. `snapshot` asks the servers;
    /// it is called when no other process has anything in flight any more.
    ///
    /// Servers that can not be asked any more cost the count of writes, not what was found before.
    ///
    /// # Errors
    /// When the other processes could not be asked.
    pub fn finish(
        &self,
        watch: Watch<'_>,
        elsewhere: Elsewhere,
        snapshot: impl FnOnce() -> anyhow::Result<Snapshot>,
    ) -> anyhow::Result<CheckReport> {
        let (sampled_ops, windows) = watch.finish();
        let (mut acknowledged, mut unknown) = self.writes();
        if let Elsewhere::Counted { acknowledged: theirs, unknown: perhaps } = elsewhere {
            acknowledged += theirs;
            unknown += perhaps;
        }
        let audit = match self.table.leave(acknowledged, unknown)? {
            Some(_) if elsewhere == Elsewhere::Audits => Audit {
                acknowledged,
                unknown,
                impossible: Some("a client of another machine does it".to_owned()),
                ..Audit::default()
            },
            None => Audit {
                impossible: Some("the last process that shares the versions does it".to_owned()),
                ..Audit::default()
            },
            Some(totals) => match snapshot() {
                Ok(end) => self.audit(totals, &end),
                Err(error) => Audit {
                    acknowledged,
                    unknown,
                    impossible: Some(format!("the servers did not tell their versions: {error:#}")),
                    ..Audit::default()
                },
            },
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

    /// Some time before an operation on `record` is pushed.
    #[inline]
    pub fn expect(&self, record: u32) {
        self.checker.table.expect(record);
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

#[cfg(test)]
mod tests {
    use linerate_client::Reason;

    use super::*;
    use crate::{check::versions::TableShape, value::fill};

    const EPOCH: u64 = 0xe;

    fn checker(value_len: usize) -> Checker {
        let value_len = ValueLen::new(value_len, value_len).unwrap();
        let shape = TableShape { records: 100, value_len, servers: 0 };
        let start = Snapshot { version: 0, data_epochs: vec![EPOCH] };
        Checker::new(VersionTable::private(shape, 1, &start).unwrap(), 2, value_len)
    }

    fn push(check: &mut ThreadCheck<'_>, place: usize, record: u32, written: Option<u64>) -> Answered {
        let (lo, lane) = check.before_push(record);
        check.pushed(place, record, written, lo, lane);
        Answered { place, record, is_put: written.is_some(), lane, is_wrong: false }
    }

    fn end(check: &mut ThreadCheck<'_>, answered: Answered, outcome: Outcome<'_>, version: u64) {
        check.ended(answered, &Ended { tag: 0, outcome, version, ttl_ms: None, data_epoch: EPOCH });
    }

    fn violations(checker: &Checker) -> (u64, String) {
        let first = checker.first_violation.lock().unwrap().clone();
        (checker.violations.load(Relaxed), first.unwrap_or_default())
    }

    /// Goal: the online rule: what a read must bring at least, and a write must exceed, is what was known when it was
    /// pushed. Method: two threads with answers around the limit, then each violation by itself.
    #[test]
    fn versions_must_not_go_back() {
        let checker = checker(16);
        let (mut one, mut other) = (ThreadCheck::new(&checker, 0, 4), ThreadCheck::new(&checker, 1, 4));
        let value = Outcome::Value(&[0; 16]);
        let concurrent = push(&mut other, 0, 7, None);
        let put = push(&mut one, 0, 7, Some(1));
        end(&mut one, put, Outcome::Done, 5);
        end(&mut other, concurrent, Outcome::NotFound, 4);
        let again = push(&mut other, 0, 7, None);
        end(&mut other, again, value, 5);
        assert_eq!(violations(&checker).0, 0, "all of this is legal");

        for (written, outcome, version, text) in [
            (
                None,
                value,
                4,
                "a get brought version 4 of data epoch 1 when version 5 of data epoch 1 was known",
            ),
            (None, Outcome::NotFound, 4, "a get brought version 4"),
            (Some(2), Outcome::Done, 5, "a put became version 5 of data epoch 1 when version 5"),
            (Some(2), Outcome::Done, 1 << 48, "beyond all"),
            (None, Outcome::Done, 9, "a get was answered like a put"),
            (Some(2), value, 5, "a put was answered like a get"),
        ] {
            let checker = self::checker(16);
            let mut check = ThreadCheck::new(&checker, 0, 4);
            let put = push(&mut check, 0, 7, Some(1));
            end(&mut check, put, Outcome::Done, 5);
            let answered = push(&mut check, 3, 7, written);
            end(&mut check, answered, outcome, version);
            let (count, first) = violations(&checker);
            assert_eq!(count, 1, "{first}");
            assert!(first.starts_with("record 7: ") && first.contains(text), "{first}");
        }
    }

    /// Goal: after a restart with empty hands small versions are new, and what was there before may not be seen again.
    /// Method: answers of two data epochs.
    #[test]
    fn a_new_data_epoch_is_newer() {
        let checker = checker(16);
        let mut check = ThreadCheck::new(&checker, 0, 4);
        let answer = |check: &mut ThreadCheck<'_>, version, data_epoch| {
            let get = push(check, 0, 7, None);
            check
                .ended(get, &Ended { tag: 0, outcome: Outcome::NotFound, version, ttl_ms: None, data_epoch });
        };
        answer(&mut check, 1_000, EPOCH);
        answer(&mut check, 0, EPOCH + 1);
        answer(&mut check, 3, EPOCH + 1);
        assert_eq!(violations(&checker).0, 0);
        answer(&mut check, 2_000, EPOCH);
        let (count, first) = violations(&checker);
        assert_eq!(count, 1);
        assert!(first.contains("version 2000 of data epoch 1 when version 3 of data epoch 2"), "{first}");
    }

    /// Goal: the audit accepts what can be and nothing else, and says when it can not tell. Method: a put acknowledged,
    /// one unknown, one refused, against all amounts by which the servers' version may have grown.
    #[test]
    fn writes_must_add_up() {
        for (grown, data_epoch, good) in
            [(0, EPOCH, false), (1, EPOCH, true), (2, EPOCH, true), (3, EPOCH, false), (0, EPOCH + 1, true)]
        {
            let checker = checker(16);
            let mut check = ThreadCheck::new(&checker, 0, 4);
            for (outcome, version) in
                [(Outcome::Done, 1), (Outcome::OutcomeUnknown, 0), (Outcome::NotExecuted(Reason::NoSpace), 0)]
            {
                let put = push(&mut check, 0, 7, Some(version));
                end(&mut check, put, outcome, version);
            }
            let get = push(&mut check, 0, 7, None);
            end(&mut check, get, Outcome::OutcomeUnknown, 0);
            drop(check);
            let snapshot = Snapshot { version: grown, data_epochs: vec![data_epoch] };
            let report = checker.finish(Watch::new(&checker), Elsewhere::Nobody, || Ok(snapshot)).unwrap();
            assert_eq!((report.violations == 0, report.ops_checked), (good, 1), "{grown}: {report:?}");
            assert_eq!(report.audit.impossible.is_some(), data_epoch != EPOCH);
            assert_eq!((report.audit.acknowledged, report.audit.unknown), (1, 1));
            let text = report.first_violation.unwrap_or_default();
            assert!(good || text.contains(&format!("{grown} writes took effect, but 1 were")), "{text}");
        }
    }

    /// Goal: writes of other machines are part of the audit where they are known, and where another client does it there is
    /// none. Method: one put here and two elsewhere, with versions that have grown by one less to one more.
    #[test]
    fn writes_elsewhere_are_counted_too() {
        for (elsewhere, grown, good) in [
            (Elsewhere::Counted { acknowledged: 2, unknown: 0 }, 2, false),
            (Elsewhere::Counted { acknowledged: 2, unknown: 0 }, 3, true),
            (Elsewhere::Counted { acknowledged: 2, unknown: 0 }, 4, false),
            (Elsewhere::Counted { acknowledged: 2, unknown: 1 }, 4, true),
            (Elsewhere::Audits, 17, true),
        ] {
            let alone = checker(16).process();
            let checker = checker(16).counting_from(7);
            assert_eq!(checker.process(), alone + 7);
            let mut check = ThreadCheck::new(&checker, 0, 4);
            let put = push(&mut check, 0, 7, Some(1));
            end(&mut check, put, Outcome::Done, 1);
            drop(check);
            assert_eq!(checker.writes(), (1, 0));
            let snapshot = Snapshot { version: grown, data_epochs: vec![EPOCH] };
            let report = checker.finish(Watch::new(&checker), elsewhere, || Ok(snapshot)).unwrap();
            assert_eq!(report.violations == 0, good, "{elsewhere:?} {grown}: {report:?}");
            assert_eq!(report.audit.impossible.is_some(), elsewhere == Elsewhere::Audits);
        }
    }

    /// Goal: the black box finds a stale read that carries a lie for a version. Method: the hottest record is put twice
    /// and the first value comes back, with ever greater versions.
    #[test]
    fn a_lie_about_the_version_is_found_by_the_zones() {
        let checker = checker(16);
        let mut watch = Watch::new(&checker);
        let (mut check, mut other) = (ThreadCheck::new(&checker, 0, 4), ThreadCheck::new(&checker, 1, 4));
        watch.turn(Instant::now());
        check.turn();
        other.turn();
        let mut old = [0; 16];
        fill(&mut old, 0, writer(1, 1, 1));
        for (version, outcome, written) in [
            (1, Outcome::Done, Some(writer(1, 1, 1))),
            (2, Outcome::Done, Some(writer(1, 1, 2))),
            (3, Outcome::Value(&old), None),
        ] {
            let answered = push(&mut check, 0, 0, written);
            assert_eq!(answered.lane, LaneNumber::HOTTEST);
            // The clock has to move between operations that shall not be concurrent.
            std::thread::sleep(std::time::Duration::from_micros(1));
            end(&mut check, answered, outcome, version);
            std::thread::sleep(std::time::Duration::from_micros(1));
        }
        drop((check, other));
        let start = Snapshot { version: 2, data_epochs: vec![EPOCH] };
        let report = checker.finish(watch, Elsewhere::Nobody, || Ok(start)).unwrap();
        assert_eq!((report.violations, report.sampled_ops, report.windows), (1, 3, 1), "{report:?}");
        let text = report.first_violation.unwrap();
        assert!(text.contains("was current both before and after"), "{text}");
    }

    /// Goal: values that do not say who wrote them are not sampled, and that is said. Method: 15 bytes.
    #[test]
    fn short_values_are_not_sampled() {
        let checker = checker(15);
        let mut watch = Watch::new(&checker);
        watch.turn(Instant::now());
        let mut check = ThreadCheck::new(&checker, 0, 4);
        check.turn();
        assert_eq!(check.before_push(0).1, LaneNumber::NONE);
        drop(check);
        let start = Snapshot { version: 0, data_epochs: vec![EPOCH] };
        let report = checker.finish(watch, Elsewhere::Nobody, || Ok(start)).unwrap();
        assert!(report.not_sampled.is_some_and(|reason| reason.contains("16 bytes")));
    }

    /// Goal: what the check costs per operation can be looked up any time (`cargo test --release -- --nocapture
    /// ns_per_operation`). Method: pushes and answers of a batch at a time, on records that stay in the caches and on
    /// many that do not; printed, never asserted.
    #[test]
    fn ns_per_operation() {
        const BATCH: usize = 110;
        for records in [100, 1_000_000] {
            let value_len = ValueLen::new(128, 128).unwrap();
            let shape = TableShape { records, value_len, servers: 0 };
            let start = Snapshot { version: 0, data_epochs: vec![EPOCH] };
            let checker = Checker::new(VersionTable::private(shape, 1, &start).unwrap(), 1, value_len);
            let mut check = ThreadCheck::new(&checker, 0, BATCH);
            let value = [0; 128];
            let (mut record, mut best) = (1_u32, f64::MAX);
            for _ in 0..2_000 {
                let begun = Instant::now();
                let batch: [Answered; BATCH] = std::array::from_fn(|place| {
                    record = record.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    push(&mut check, place, ((u64::from(record) * u64::from(records)) >> 32) as u32, None)
                });
                batch.iter().for_each(|&answered| end(&mut check, answered, Outcome::Value(&value), 1));
                best = best.min(begun.elapsed().as_nanos() as f64 / BATCH as f64);
            }
            assert_eq!(violations(&checker).0, 0);
            println!("{best:.1} ns per operation, {records} records");
        }
    }
}
