//! The newest version that anybody has seen of each record: one word per record, shared by all client threads, and by
//! all client processes when it lies in a file.
//!
//! ```text
//! │ header: what the table is for, data epochs, totals for the audit │ record 0 │ record 1 │ …     8 bytes each
//! entry    │ incarnation (16 bits) │ version (48 bits) │
//! ```
//! The incarnation numbers the servers' data epochs in the order in which they were first seen. A server that has lost
//! its contents starts over with small versions but a new epoch, so that its entries are still greater than all before.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use linerate_dataplane::SharedWords;

use crate::workload::ValueLen;

/// Bits of a version in an entry: at 100 million writes a second a shard counts for a month.
const VERSION_BITS: u32 = 48;

/// Data epochs that are told apart; entries of later ones are not checked.
const EPOCHS_MAX: usize = 1_024;

/// First word of a file of this kind: "linerate" in ASCII.
const MAGIC_NUMBER: u64 = u64::from_be_bytes(*b"linerate");

/// Changes whenever the layout does.
const FORMAT_NUMBER: u64 = 1;

/// Another process that is just beginning or ending is waited for this long at a time.
const RETRY_AFTER: Duration = Duration::from_millis(10);

// Places of the words of the header.
const MAGIC: usize = 0;
const FORMAT: usize = 1;
const RECORDS: usize = 2;
const SERVERS: usize = 3;
const VALUE_LENS: usize = 4;
/// Made by the process that began the table, so that it knows its own.
const NONCE: usize = 5;
/// Set when the header is complete, and to 2 when the audit is over and the table of no more use.
const STATE: usize = 6;
/// Processes that have ever been attached, and those that have left in order.
const ATTACHED: usize = 7;
const LEFT: usize = 8;
const ACKNOWLEDGED: usize = 9;
const UNKNOWN: usize = 10;
const VERSION_AT_START: usize = 11;
const EPOCHS_AT_START: usize = 12;
const EPOCHS: usize = 16;
const ENTRIES: usize = EPOCHS + EPOCHS_MAX;

const STATE_READY: u64 = 1;
const STATE_AUDITED: u64 = 2;

/// What processes must have in common to share a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableShape {
    /// Number of records.
    pub records: u32,
    /// Lengths of the values.
    pub value_len: ValueLen,
    /// Tells servers apart: a hash of their addresses.
    pub servers: u64,
}

/// What the servers say when nothing is in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Versions of all shards, added up: writes that took effect.
    pub version: u64,
    /// Data epochs of the servers.
    pub data_epochs: Vec<u64>,
}

/// What all processes together know at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Puts that were acknowledged, those of the preload included.
    pub acknowledged: u64,
    /// Puts of which nobody knows whether they took effect.
    pub unknown: u64,
    /// [`Snapshot::version`] before the first of them.
    pub version_at_start: u64,
    /// Data epochs at the start; those seen since come behind them.
    pub epochs_at_start: usize,
    /// Processes that shared the table.
    pub processes: u64,
    /// Of these, ended without telling their totals.
    pub missing: u64,
}

/// The table.
#[derive(Debug)]
pub struct VersionTable {
    words: SharedWords,
    /// Locked shared for as long as this process uses the table: the kernel unlocks it however the process ends.
    file: Option<File>,
    process: u64,
}

impl VersionTable {
    /// A table for this process alone. `process` shall differ from that of others with some probability.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn private(shape: TableShape, process: u64, start: &Snapshot) -> anyhow::Result<Self> {
        let words = SharedWords::anonymous(ENTRIES + shape.records as usize)
            .context("no memory for the versions of all records, 8 bytes each")?;
        let table = Self { words, file: None, process };
        table.begin(shape, start);
        Ok(table)
    }

    /// The table in the file at `path`, which is made by the first process and joined by those that come while any is
    /// still attached. `start` asks the servers, and is called by the first one only, while all others wait.
    ///
    /// # Errors
    /// A sentence that names the file and what is wrong with it: it belongs to somebody else, or those who use it are
    /// about other records or servers.
    pub fn shared(
        path: &Path,
        shape: TableShape,
        start: impl Fn() -> anyhow::Result<Snapshot>,
    ) -> anyhow::Result<Self> {
        let cannot = || format!("cannot share versions in \"{}\"", path.display());
        let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.with_context(cannot)?;
        let count = ENTRIES + shape.records as usize;
        loop {
            let nonce = match file.try_lock() {
                Ok(()) => {
                    let nonce = Self::make(&file, count, shape, &start).with_context(cannot)?;
                    // Between the two locks another process may begin the table anew.
                    Some(nonce)
                }
                Err(TryLockError::WouldBlock) => None,
                Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
            };
            file.lock_shared().with_context(cannot)?;
            if let Some(table) = Self::join(&file, count, shape, nonce).with_context(cannot)? {
                return Ok(Self { file: Some(file), ..table });
            }
            file.unlock().with_context(cannot)?;
            thread::sleep(RETRY_AFTER);
        }
    }

    /// Writes the header of a file that nobody else uses, and clears all entries.
    fn make(
        file: &File,
        count: usize,
        shape: TableShape,
        start: &impl Fn() -> anyhow::Result<Snapshot>,
    ) -> anyhow::Result<u64> {
        if file.metadata()?.len() > 0 {
            let is_ours =
                SharedWords::of_file(file, 1).is_ok_and(|words| words[0].load(Relaxed) == MAGIC_NUMBER);
            anyhow::ensure!(is_ours, "it holds something else; name a new file, or one of an earlier run");
        }
        let len = (count * size_of::<u64>()) as u64;
        // Never made shorter: a process that looks at it just now would be killed.
        if file.metadata()?.len() < len {
            file.set_len(len)?;
        }
        let words = SharedWords::of_file(file, count)?;
        words[STATE].store(0, Release);
        words[MAGIC].store(MAGIC_NUMBER, Relaxed);
        words[STATE + 1..].iter().for_each(|word| word.store(0, Relaxed));
        let nonce = rand::random();
        words[NONCE].store(nonce, Relaxed);
        Self { words, file: None, process: 0 }.begin(shape, &start()?);
        Ok(nonce)
    }

    /// Maps the file for a process that holds it; `None` when the table in it is over, or not the one with `nonce`.
    fn join(
        file: &File,
        count: usize,
        shape: TableShape,
        nonce: Option<u64>,
    ) -> anyhow::Result<Option<Self>> {
        let header = match SharedWords::of_file(file, ENTRIES) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            header => header?,
        };
        let word = |place: usize| header[place].load(Acquire);
        if word(STATE) != STATE_READY || nonce.is_some_and(|nonce| word(NONCE) != nonce) {
            return Ok(None);
        }
        anyhow::ensure!(
            word(FORMAT) == FORMAT_NUMBER,
            "it is being used by another version of this program; name another file"
        );
        anyhow::ensure!(
            [word(RECORDS), word(VALUE_LENS)] == [shape.records.into(), value_lens(shape.value_len)],
            "it is being used for {} records; give the same --records and --value-len, or name another file",
            word(RECORDS)
        );
        anyhow::ensure!(
            word(SERVERS) == shape.servers,
            "it is being used for another server; give the same --target, or name another file"
        );
        let words = SharedWords::of_file(file, count)?;
        let process = words[ATTACHED].fetch_add(1, AcqRel);
        Ok(Some(Self { words, file: None, process }))
    }

    /// Fills in the header of a table whose entries are all 0.
    fn begin(&self, shape: TableShape, start: &Snapshot) {
        let store = |place: usize, value: u64| self.words[place].store(value, Relaxed);
        store(FORMAT, FORMAT_NUMBER);
        store(RECORDS, shape.records.into());
        store(SERVERS, shape.servers);
        store(VALUE_LENS, value_lens(shape.value_len));
        store(VERSION_AT_START, start.version);
        for &epoch in &start.data_epochs {
            self.incarnation(epoch);
        }
        store(EPOCHS_AT_START, self.epochs() as u64);
        self.words[STATE].store(STATE_READY, Release);
    }

    /// Number of this process among those that share the table.
    #[must_use]
    pub const fn process(&self) -> u64 {
        self.process
    }

    /// Data epochs seen so far.
    #[must_use]
    pub fn epochs(&self) -> usize {
        let epochs = &self.words[EPOCHS..ENTRIES];
        epochs.iter().take_while(|epoch| epoch.load(Acquire) != 0).count()
    }

    /// The number of a data epoch, from 1 on in the order in which they were first seen by anybody; `None` when there
    /// have been too many, and for 0, which is none.
    pub fn incarnation(&self, data_epoch: u64) -> Option<u16> {
        if data_epoch == 0 {
            return None;
        }
        for (epoch, incarnation) in self.words[EPOCHS..ENTRIES].iter().zip(1..) {
            let known = match epoch.compare_exchange(0, data_epoch, AcqRel, Acquire) {
                Ok(_) => data_epoch,
                Err(known) => known,
            };
            if known == data_epoch {
                return Some(incarnation);
            }
        }
        None
    }

    /// The newest entry that an answer has brought for `record`: what is asked from now on must be at least as new.
    #[inline]
    #[must_use]
    pub fn newest(&self, record: u32) -> u64 {
        self.entry(record).load(Acquire)
    }

    /// Says that `record` will be asked for soon: the table is larger than the caches.
    #[inline]
    pub fn expect(&self, record: u32) {
        self.words.prefetch(ENTRIES + record as usize);
    }

    /// Takes note of the entry that an answer has brought.
    #[inline]
    pub fn raise(&self, record: u32, entry: u64) {
        let newest = self.entry(record);
        // Most reads bring nothing new, and a plain load does not take the line away from the others.
        if newest.load(Relaxed) < entry {
            newest.fetch_max(entry, AcqRel);
        }
    }

    #[inline]
    fn entry(&self, record: u32) -> &AtomicU64 {
        &self.words[ENTRIES + record as usize]
    }

    /// Adds what this process has counted. Returns what all have when it is the last one to leave, which then does the
    /// audit and drops the table after it; the others get `None`.
    ///
    /// # Errors
    /// What flock(2) says.
    pub fn leave(&self, acknowledged: u64, unknown: u64) -> io::Result<Option<Totals>> {
        self.words[ACKNOWLEDGED].fetch_add(acknowledged, AcqRel);
        self.words[UNKNOWN].fetch_add(unknown, AcqRel);
        self.words[LEFT].fetch_add(1, AcqRel);
        if let Some(file) = &self.file {
            match file.try_lock() {
                Ok(()) => {}
                // Whoever holds it leaves later.
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if self.words[STATE].swap(STATE_AUDITED, AcqRel) == STATE_AUDITED {
                return Ok(None);
            }
        }
        let word = |place: usize| self.words[place].load(Acquire);
        let processes = if self.file.is_some() { word(ATTACHED) } else { 1 };
        Ok(Some(Totals {
            acknowledged: word(ACKNOWLEDGED),
            unknown: word(UNKNOWN),
            version_at_start: word(VERSION_AT_START),
            epochs_at_start: word(EPOCHS_AT_START) as usize,
            processes,
            missing: processes - word(LEFT),
        }))
    }
}

/// The entry of a version; `None` when no honest server has come so far.
#[inline]
#[must_use]
pub const fn entry(incarnation: u16, version: u64) -> Option<u64> {
    if version >> VERSION_BITS == 0 { Some((incarnation as u64) << VERSION_BITS | version) } else { None }
}

/// Incarnation and version of an entry.
#[must_use]
pub const fn parts(entry: u64) -> (u64, u64) {
    (entry >> VERSION_BITS, entry & ((1 << VERSION_BITS) - 1))
}

const fn value_lens(lens: ValueLen) -> u64 {
    (lens.min() as u64) << 32 | lens.max() as u64
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, sync::Barrier};

    use super::*;

    fn shape() -> TableShape {
        TableShape { records: 100, value_len: ValueLen::new(16, 64).unwrap(), servers: 7 }
    }

    fn snapshot() -> Snapshot {
        Snapshot { version: 1_000, data_epochs: vec![77] }
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("linerate-versions-{name}-{}", std::process::id()))
    }

    fn join(path: &Path, shape: TableShape) -> anyhow::Result<VersionTable> {
        VersionTable::shared(path, shape, || Ok(snapshot()))
    }

    /// Goal: entries order by incarnation, then version, and only grow. Method: raise one from all sides.
    #[test]
    fn entries_only_grow() {
        let table = VersionTable::private(shape(), 3, &snapshot()).unwrap();
        assert_eq!((table.process(), table.newest(99)), (3, 0));
        let entries = [(1, 0), (1, 5), (1, (1 << 48) - 1), (2, 0), (2, 1)];
        let entries = entries.map(|(incarnation, version)| entry(incarnation, version).unwrap());
        assert!(entries.is_sorted());
        assert_eq!(parts(entries[2]), (1, (1 << 48) - 1));
        assert_eq!(entry(1, 1 << 48), None);
        for (index, &entry) in entries.iter().enumerate() {
            table.raise(42, entry);
            table.raise(42, entries[index / 2]);
            assert_eq!(table.newest(42), entry);
        }
        assert_eq!((table.newest(41), table.newest(43)), (0, 0));
    }

    /// Goal: data epochs are numbered once, in the order of their first appearance. Method: several, again, and too many.
    #[test]
    fn epochs_are_numbered_as_they_come() {
        let table = VersionTable::private(shape(), 0, &snapshot()).unwrap();
        assert_eq!(table.epochs(), 1);
        for (epoch, incarnation) in [(77, 1), (5, 2), (77, 1), (u64::MAX, 3), (5, 2), (9, 4), (9, 4)] {
            assert_eq!(table.incarnation(epoch), Some(incarnation));
        }
        assert_eq!((table.incarnation(0), table.epochs()), (None, 4));
        for epoch in 1_000..=1_000 + EPOCHS_MAX as u64 {
            table.incarnation(epoch);
        }
        assert_eq!(table.epochs(), EPOCHS_MAX);
        assert_eq!(table.incarnation(1_000 + EPOCHS_MAX as u64), None);
        assert_eq!(table.incarnation(77), Some(1));
    }

    /// Goal: those who join see the same entries, the last to leave gets everyone's totals, and whoever comes later
    /// starts anew. Method: two tables of one file, then a third.
    #[test]
    fn processes_share_a_file_and_the_last_one_audits() {
        let path = path("shared");
        let (one, other) = (join(&path, shape()).unwrap(), join(&path, shape()).unwrap());
        assert_eq!((one.process(), other.process()), (0, 1));
        one.raise(5, entry(1, 9).unwrap());
        assert_eq!(other.newest(5), entry(1, 9).unwrap());
        assert_eq!(other.incarnation(5), Some(2));
        assert_eq!(one.incarnation(5), Some(2));
        assert_eq!(one.leave(10, 1).unwrap(), None);
        drop(one);
        let totals = other.leave(20, 2).unwrap().unwrap();
        let expected = Totals {
            acknowledged: 30,
            unknown: 3,
            version_at_start: 1_000,
            epochs_at_start: 1,
            processes: 2,
            missing: 0,
        };
        assert_eq!(totals, expected);
        drop(other);
        let third = join(&path, TableShape { records: 50, ..shape() }).unwrap();
        assert_eq!((third.process(), third.newest(5), third.epochs()), (0, 0, 1));
        fs::remove_file(&path).unwrap();
    }

    /// Goal: a process that ended without a word is noticed. Method: drop one of two.
    #[test]
    fn a_process_that_is_gone_is_missing() {
        let path = path("gone");
        let (one, other) = (join(&path, shape()).unwrap(), join(&path, shape()).unwrap());
        drop(one);
        assert_eq!(other.leave(1, 0).unwrap().map(|totals| totals.missing), Some(1));
        fs::remove_file(&path).unwrap();
    }

    /// Goal: a file is never taken for what it is not, and a refusal is one sentence. Method: a stranger's file, and
    /// other records, value lengths and servers while one is attached.
    #[test]
    fn files_of_another_shape_are_refused() {
        let path = path("refused");
        fs::write(&path, "a letter to somebody").unwrap();
        let error = format!("{:#}", join(&path, shape()).unwrap_err());
        assert!(error.contains("refused") && error.contains("it holds something else"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a letter to somebody");
        fs::remove_file(&path).unwrap();

        let _attached = join(&path, shape()).unwrap();
        for (shape, words) in [
            (TableShape { records: 99, ..shape() }, "for 100 records"),
            (TableShape { value_len: ValueLen::new(16, 65).unwrap(), ..shape() }, "--value-len"),
            (TableShape { servers: 8, ..shape() }, "for another server"),
        ] {
            let error = format!("{:#}", join(&path, shape).unwrap_err());
            assert!(error.contains(words) && !error.contains('\n'), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(join(&path.join("x"), shape()).is_err(), "a folder that is not there");
    }

    /// Goal: many that begin at once make one table. Method: eight threads, each with its own descriptor as processes
    /// have, again and again; all must agree on who is who, and just one may be last.
    #[test]
    fn a_race_to_begin_makes_one_table() {
        let path = path("race");
        for _ in 0..20 {
            let (joined, barrier) = (AtomicU64::new(0), Barrier::new(8));
            let lasts: usize = thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            barrier.wait();
                            let table = join(&path, shape()).unwrap();
                            joined.fetch_or(1 << table.process(), AcqRel);
                            barrier.wait();
                            let last = table.leave(1, 0).unwrap();
                            assert!(last.is_none_or(|totals| totals.acknowledged == 8), "{last:?}");
                            usize::from(last.is_some())
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!((lasts, joined.into_inner()), (1, 0xff));
        }
        fs::remove_file(&path).unwrap();
    }
}
