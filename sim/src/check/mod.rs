//! The judge: told of every call and every end, it says which of them a correct store cannot have produced.
//!
//! Six questions, each answered by other means, so that a fault must fool all of them:
//! - **Versions**, at once: an answer that comes after another must not be older. Before a call the newest version known
//!   of its key (and of its shard, since versions count all the writes of one) is noted; a read must bring as new a
//!   one, a write a newer one. Sound and complete for a store that tells its versions truthfully.
//! - **Values**: each carries its writer; what nobody wrote there is wrong, and so are two values of one version,
//!   two versions of one write, and a value whose put was said to be not executed.
//! - **Ends**: each call ends once, in a way that its kind can end.
//! - **The black box** ([`register`]): each key's history must have an explanation by times and contents alone.
//! - **Conditions and counters**: a write on a condition follows upon what it names, and what
//!   adds have found is the sum of those before.
//! - **The books**: each shard's count of effective writes lies between those acknowledged and those that may have been.
//!
//! A server that restarts begins empty, in a new *incarnation*. Its data epoch is a name without an order; the judge is
//! told when each began and ended, and compares pairs of incarnation and version.

mod conditions;
mod counters;
pub mod register;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use linerate_client::{Condition, Ended, Outcome, Reason};

use crate::value::{Origin, read_value};
use register::{Access, Span};

/// Violations that are kept in words; the rest are counted.
const KEPT_MAX: usize = 20;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Reads the key.
    Get,
    /// Writes a [value](crate::value) that names this call, of this length in bytes.
    Put {
        /// Length of the value.
        len: usize,
    },
    /// The same on a condition.
    PutOn {
        /// Length of the value.
        len: usize,
        /// When not met, nothing is written.
        condition: Condition,
    },
    /// Removes the key.
    Delete,
    /// Adds to the number of a key that is only added to.
    Add {
        /// 1 or above.
        delta: u64,
    },
}

impl Ask {
    /// Length of the value that it writes.
    const fn put_len(self) -> Option<usize> {
        match self {
            Self::Put { len } | Self::PutOn { len, .. } => Some(len),
            Self::Get | Self::Delete | Self::Add { .. } => None,
        }
    }

    /// Whether a correct store can refuse it for this reason.
    const fn may_meet(self, reason: Reason) -> bool {
        match reason {
            Reason::Exists => matches!(self, Self::PutOn { condition: Condition::Absent, .. }),
            // Of a get: a long value was replaced again and again.
            Reason::Changed => {
                matches!(self, Self::Get | Self::PutOn { condition: Condition::Version(_), .. })
            }
            Reason::NotANumber => false,
            _ => true,
        }
    }
}

/// What is said of an operation when it is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Number of its key.
    pub key: u16,
    /// Shard that owns the key.
    pub shard: u8,
    /// Client that asks.
    pub client: u16,
    /// What for.
    pub ask: Ask,
}

/// A rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Each call ends exactly once.
    Ends,
    /// Gets end in a value or none, puts in done, deletes in done or none.
    Kind,
    /// Answers come from a server that has been started, and was not dead before it was asked.
    Epoch,
    /// Answers after an answer are not older.
    Version,
    /// A value that is read was written, there, and in one piece.
    Value,
    /// A write takes effect once: it has one version, and that version is its alone.
    Once,
    /// What was not executed has no effect.
    NotExecuted,
    /// A write on a condition takes effect only if it is met.
    Condition,
    /// A counter is the sum of what was added to it.
    Counter,
    /// The history of a key has an explanation.
    BlackBox,
    /// A shard counts as many writes as took effect.
    Books,
    /// Nobody gets more bytes than it sent before it has proven its address.
    Amplification,
    /// A session is opened only to an address that was told a cookie for it.
    Proof,
    /// No more is in flight than was credited, and so nothing overflows once all is well.
    Credit,
    /// Once all is well again, operations end in results.
    Healed,
    /// The code under test does not panic.
    Panic,
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

/// How often operations ended in each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndCounts {
    /// With a value, without one, or done.
    pub results: u64,
    /// Not executed.
    pub not_executed: u64,
    /// Unknown.
    pub unknown: u64,
    /// Lost with their client.
    pub abandoned: u64,
}

/// An incarnation and a version in it; incarnations count from 1, so that the default is before all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Stamp {
    incarnation: u32,
    version: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Answered: by which incarnation, and of a read the put whose value it saw.
    Result {
        incarnation: u32,
        read: Option<u32>,
        done: bool,
        /// Of an add, the number that it found.
        former: u64,
    },
    NotExecuted,
    /// Unknown, or lost with its client.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    call: Call,
    start: u64,
    end: u64,
    state: State,
    /// Newest answers about its key and its shard when it began.
    key_before: Stamp,
    shard_before: Stamp,
    /// Of a write, once it is known.
    effect: Option<Stamp>,
}

/// Life of one server.
#[derive(Clone, Copy, Debug)]
struct Life {
    start: u64,
    /// `u64::MAX` while it lives.
    end: u64,
}

/// The judge of one run.
#[derive(Debug, Default)]
pub struct Checker {
    tick: u64,
    records: Vec<Record>,
    /// By incarnation, less 1.
    lives: Vec<Life>,
    incarnation_of: HashMap<u64, u32>,
    /// Newest answers, by key and by shard.
    keys: BTreeMap<u16, Stamp>,
    shards: BTreeMap<u8, Stamp>,
    write_of: HashMap<(u8, Stamp), u32>,
    /// Newest version told of each incarnation and shard.
    told: BTreeMap<(u32, u8), u64>,
    /// Count of effective writes of each incarnation and shard, at its end.
    counts: BTreeMap<(u32, u8), u64>,
    ends: EndCounts,
    violations: Vec<Violation>,
    violation_count: u64,
}

impl Checker {
    /// A judge who has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty server has started; its data have this epoch.
    pub fn server_started(&mut self, data_epoch: u64) {
        self.tick += 1;
        self.lives.push(Life { start: self.tick, end: u64::MAX });
        let again = self.incarnation_of.insert(data_epoch, self.lives.len() as u32);
        assert_eq!(again, None, "each start has an epoch of its own");
    }

    /// The server that started last is gone. `counts`: effective writes of each shard as it counted them.
    pub fn server_stopped(&mut self, counts: &[u64]) {
        self.tick += 1;
        let incarnation = self.lives.len() as u32;
        let life = self.lives.last_mut().expect("a server was started");
        life.end = self.tick;
        self.counts.extend(counts.iter().zip(0..).map(|(&count, shard)| ((incarnation, shard), count)));
    }

    /// The tag of the next call.
    #[must_use]
    pub const fn next_tag(&self) -> u32 {
        self.records.len() as u32
    }

    /// An operation was pushed, with [`next_tag`](Self::next_tag) for a tag.
    pub fn called(&mut self, call: Call) {
        self.tick += 1;
        self.records.push(Record {
            call,
            start: self.tick,
            end: u64::MAX,
            state: State::Open,
            key_before: self.keys.get(&call.key).copied().unwrap_or_default(),
            shard_before: self.shards.get(&call.shard).copied().unwrap_or_default(),
            effect: None,
        });
    }

    /// An operation has ended, as its client was told.
    pub fn ended(&mut self, ended: Ended<'_>) {
        self.tick += 1;
        let Some(record) = self.records.get(ended.tag as usize).copied() else {
            return self.violate(Rule::Ends, format!("{ended:?} has a tag that nobody gave"));
        };
        let tag = ended.tag as u32;
        if record.state != State::Open {
            return self.violate(Rule::Ends, format!("{record:?} has ended again: {ended:?}"));
        }
        self.records[tag as usize].end = self.tick;
        self.records[tag as usize].state = match (ended.outcome, record.call.ask) {
            (Outcome::NotExecuted(reason), ask) if !ask.may_meet(reason) => {
                self.violate(Rule::Kind, format!("operation {tag}, {ask:?}, was refused: {reason}"));
                State::NotExecuted
            }
            (Outcome::NotExecuted(reason), ask) => {
                if matches!(reason, Reason::Exists | Reason::Changed) && ask != Ask::Get {
                    // It tells of a value that is there, like a read.
                    self.result(tag, ended);
                }
                self.ends.not_executed += 1;
                if let Some(effect) = record.effect {
                    let what =
                        format!("operation {tag} was not executed, but its value was read: {effect:?}");
                    self.violate(Rule::NotExecuted, what);
                }
                State::NotExecuted
            }
            (
                Outcome::OutcomeUnknown,
                Ask::Put { .. } | Ask::PutOn { .. } | Ask::Delete | Ask::Add { .. },
            ) => {
                self.ends.unknown += 1;
                State::Unknown
            }
            (Outcome::Value(_) | Outcome::NotFound, Ask::Get)
            | (Outcome::Done, Ask::Put { .. } | Ask::PutOn { .. })
            | (Outcome::NotFound, Ask::PutOn { condition: Condition::Present | Condition::Version(_), .. })
            | (Outcome::Value(&[_, _, _, _, _, _, _, _]), Ask::Add { .. })
            | (Outcome::Done | Outcome::NotFound, Ask::Delete) => {
                self.ends.results += 1;
                self.result(tag, ended)
            }
            (outcome, ask) => {
                self.violate(Rule::Kind, format!("operation {tag}, {ask:?}, ended as {outcome:?}"));
                State::Unknown
            }
        };
    }

    /// A client is gone: nobody will learn how its operations ended.
    pub fn client_stopped(&mut self, client: u16) {
        self.tick += 1;
        for record in &mut self.records {
            if record.call.client == client && record.state == State::Open {
                record.state = State::Unknown;
                record.end = self.tick;
                self.ends.abandoned += 1;
            }
        }
    }

    /// Judges one result, and returns what there is to remember of it.
    fn result(&mut self, tag: u32, ended: Ended<'_>) -> State {
        let Ended { outcome, version, data_epoch, .. } = ended;
        let Record { call, start, key_before, shard_before, .. } = self.records[tag as usize];
        let Some(&incarnation) = self.incarnation_of.get(&data_epoch) else {
            self.violate(Rule::Epoch, format!("operation {tag} was answered of epoch {data_epoch:#x}"));
            return State::Unknown;
        };
        let life = self.lives[incarnation as usize - 1];
        if life.end < start {
            let what = format!("operation {tag} was answered by server {incarnation}, dead before the call");
            self.violate(Rule::Epoch, what);
        }
        let stamp = Stamp { incarnation, version };
        let done = outcome == Outcome::Done || matches!(call.ask, Ask::Add { .. });
        // Absence is a fact about the shard at that moment; a value only says when it was written.
        let about_shard = outcome == Outcome::NotFound;
        let as_new = if done {
            stamp > key_before && stamp > shard_before
        } else {
            stamp >= key_before && !(about_shard && stamp < shard_before)
        };
        let has_version = version > 0 || about_shard;
        if !as_new || !has_version {
            let what = format!(
                "operation {tag}, {call:?}, was answered {} of {stamp:?}, but when it began its key was at \
                 {key_before:?} and its shard at {shard_before:?}",
                name(outcome)
            );
            self.violate(Rule::Version, what);
        }
        let newest = self.keys.entry(call.key).or_default();
        *newest = stamp.max(*newest);
        let newest = self.shards.entry(call.shard).or_default();
        *newest = stamp.max(*newest);
        let told = self.told.entry((incarnation, call.shard)).or_default();
        *told = version.max(*told);
        let read = match outcome {
            Outcome::Value(value) if !done => match self.author(tag, call, value) {
                None => return State::Unknown,
                author => author,
            },
            _ => None,
        };
        if let Some(write) = if done { Some(tag) } else { read } {
            self.took_effect(write, stamp, tag);
        }
        let former = match outcome {
            Outcome::Value(value) if done => value.try_into().map_or(0, u64::from_be_bytes),
            _ => 0,
        };
        State::Result { incarnation, read, done, former }
    }

    /// The put that wrote a value, if one can have.
    fn author(&mut self, tag: u32, call: Call, value: &[u8]) -> Option<u32> {
        let written = |origin: Origin| {
            let record = self.records.get(origin.tag as usize)?;
            let of_call = Call { key: origin.key, client: origin.writer, ..record.call };
            let whole = record.call.ask.put_len() == Some(value.len());
            (origin.key == call.key && record.call == of_call && whole).then_some(origin.tag)
        };
        let author = read_value(value).and_then(written);
        if author.is_none() {
            let origin = read_value(value);
            let what = format!("operation {tag}, {call:?}, read {} bytes of nobody: {origin:?}", value.len());
            self.violate(Rule::Value, what);
        }
        author
    }

    /// `teller` has told that a write took effect.
    fn took_effect(&mut self, write: u32, stamp: Stamp, teller: u32) {
        let Record { call, state, effect, end, .. } = self.records[write as usize];
        if end < self.lives[stamp.incarnation as usize - 1].start {
            let what =
                format!("{write} had ended before the server started in which {teller} saw it: {stamp:?}");
            self.violate(Rule::Once, what);
        }
        if state == State::NotExecuted {
            let what = format!("operation {teller} saw {write} take effect, which was not executed");
            self.violate(Rule::NotExecuted, what);
        }
        match effect {
            None => self.records[write as usize].effect = Some(stamp),
            Some(known) if known != stamp => {
                let what =
                    format!("{write} took effect at {known:?}, and at {stamp:?} as {teller} tells: {call:?}");
                self.violate(Rule::Once, what);
            }
            Some(_) => {}
        }
        let owner = *self.write_of.entry((call.shard, stamp)).or_insert(write);
        if owner != write {
            let what = format!("{stamp:?} of shard {} is both that of {owner} and of {write}", call.shard);
            self.violate(Rule::Once, what);
        }
    }

    /// Judges what can only be judged at the end, when the last server has been stopped.
    pub fn finish(&mut self) {
        self.check_registers();
        self.check_books();
        self.check_conditions();
        self.check_counters();
    }

    /// Each key's history within each incarnation, by times and contents alone.
    fn check_registers(&mut self) {
        let mut histories: BTreeMap<(u16, u32), Vec<(Span, Access)>> = BTreeMap::new();
        // Unanswered puts in the histories in which they were read.
        let mut seen: HashSet<(u32, u32)> = HashSet::new();
        for (record, tag) in self.records.iter().zip(0u32..) {
            let State::Result { incarnation, read, done, .. } = record.state else { continue };
            if matches!(record.call.ask, Ask::Add { .. }) {
                continue; // No register.
            }
            let history = histories.entry((record.call.key, incarnation)).or_default();
            let span = Span { start: record.start, end: record.end };
            let access = match (record.call.ask, read) {
                (ask, _) if done && ask.put_len().is_some() => Access::Write(tag.into()),
                (_, Some(put)) => {
                    let author = &self.records[put as usize];
                    let answered =
                        matches!(author.state, State::Result { incarnation: by, .. } if by == incarnation);
                    if !answered && seen.insert((put, incarnation)) {
                        let span = Span { start: author.start, end: u64::MAX };
                        history.push((span, Access::Write(put.into())));
                    }
                    Access::Read(put.into())
                }
                (Ask::Delete, None) if done => Access::Removed,
                (_, None) => Access::Absent,
            };
            history.push((span, access));
        }
        for (record, tag) in self.records.iter().zip(0u32..) {
            let access = match record.call.ask {
                Ask::Delete => Access::MayRemove,
                Ask::Put { .. } | Ask::PutOn { .. } => Access::MayWrite,
                Ask::Get | Ask::Add { .. } => continue,
            };
            if !matches!(record.state, State::Unknown | State::Open) {
                continue;
            }
            let span = Span { start: record.start, end: u64::MAX };
            for (life, incarnation) in self.lives.iter().zip(1..) {
                if life.end > record.start
                    && record.end > life.start
                    && !seen.contains(&(tag, incarnation))
                    && let Some(history) = histories.get_mut(&(record.call.key, incarnation))
                {
                    history.push((span, access));
                }
            }
        }
        for ((key, incarnation), history) in histories {
            if let Err(contradiction) = register::check(&history) {
                let what = format!("key {key} of server {incarnation}: {contradiction}");
                self.violate(Rule::BlackBox, what);
            }
        }
    }

    /// Each shard's count of effective writes: acknowledged ones and those known to have taken effect at least, and
    /// at most those that may have as well.
    fn check_books(&mut self) {
        let mut wrong = Vec::new();
        for (&(incarnation, shard), &count) in &self.counts {
            let life = self.lives[incarnation as usize - 1];
            let (mut certain, mut possible) = (0, 0);
            for record in self.records.iter().filter(|record| record.call.shard == shard) {
                match (record.effect, record.state) {
                    (Some(effect), _) => certain += u64::from(effect.incarnation == incarnation),
                    (None, State::Unknown | State::Open) if record.call.ask != Ask::Get => {
                        possible += u64::from(record.start < life.end && record.end > life.start);
                    }
                    _ => {}
                }
            }
            let told = self.told.get(&(incarnation, shard)).copied().unwrap_or(0);
            if !(certain..=certain + possible).contains(&count) || told > count {
                wrong.push(format!(
                    "shard {shard} of server {incarnation} counts {count} writes, but {certain} took effect, \
                     {possible} more may have, and it has told of version {told}"
                ));
            }
        }
        for what in wrong {
            self.violate(Rule::Books, what);
        }
    }

    /// Notes a broken rule that somebody else has found.
    pub fn violate(&mut self, rule: Rule, what: String) {
        self.violation_count += 1;
        if self.violations.len() < KEPT_MAX {
            self.violations.push(Violation { rule, what });
        }
    }

    /// Broken rules in the order in which they were found, as far as they were kept.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// How many there were.
    #[must_use]
    pub const fn violation_count(&self) -> u64 {
        self.violation_count
    }

    /// Version of the newest value or absence that was told of a key; 0 before any.
    #[must_use]
    pub fn newest_version(&self, key: u16) -> u64 {
        self.keys.get(&key).map_or(0, |stamp| stamp.version)
    }

    /// How operations ended so far.
    #[must_use]
    pub const fn ends(&self) -> EndCounts {
        self.ends
    }

    /// Operations called and not ended.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.records.iter().filter(|record| record.state == State::Open).count()
    }
}

/// An outcome without its value.
#[must_use]
pub const fn name(outcome: Outcome<'_>) -> &'static str {
    match outcome {
        Outcome::Value(_) => "a value",
        Outcome::NotFound => "absent",
        Outcome::Done => "done",
        Outcome::NotExecuted(_) => "not executed",
        Outcome::OutcomeUnknown => "unknown",
    }
}
