//! From the draws of a stream to operations in flight.

use std::io;

use linerate_client::{Condition, Instant, Key, Operation, PushError, Session, Terms};
use linerate_dataplane::Port;

use super::{
    LoadReport,
    schedule::Schedule,
    tally::{Batch, Place, Tag, Tally},
};
use crate::{
    check::{LaneNumber, ThreadCheck},
    value::{fill, writer},
    workload::{Draw, Kind, Stream, ValueLaw},
};

/// Operations between looking up where a record's version lies and reading it: pushing one takes some 10 ns, memory
/// some 100 ns to answer.
const LOOK_AHEAD: usize = 16;

/// Which operations are begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// The time.
    pub(super) now: Instant,
    /// In an open loop those that are due before then.
    pub(super) until: Instant,
    /// And those counted that are due from then on.
    pub(super) counting_from: Instant,
}

/// Turns draws into operations.
pub(super) struct Pusher {
    batch: usize,
    value_len: ValueLaw,
    process: u16,
    client: u16,
    sequence: u64,
    /// The batch being pushed, and how many of its operations are still to come.
    current: Option<(u32, usize)>,
    value: Box<[u8]>,
}

impl Pusher {
    /// One that writes values in the name of a client of a process.
    pub(super) fn new(process: u16, client: u16, batch: usize, value_len: &ValueLaw) -> Self {
        Self {
            batch,
            value_len: value_len.clone(),
            process,
            client,
            sequence: 0,
            current: None,
            value: vec![0; value_len.lens().max()].into(),
        }
    }

    /// Whether operations of a batch are still to be pushed.
    pub(super) const fn has_begun(&self) -> bool {
        self.current.is_some()
    }

    /// The batch whose operations are still to be pushed.
    ///
    /// # Panics
    /// When there is none.
    pub(super) fn begun(&self) -> usize {
        self.current.expect("a batch was begun").0 as usize
    }

    /// Pushes operations until all batches are in flight, none is [due](Due) (in an open loop), or the session takes no more;
    /// returns whether it has pushed any.
    ///
    /// `PLAIN`: the loop is closed, the stream has gets and puts by decimal keys alone, and nothing is checked but values. That
    /// is nearly always so, and spares each operation half a dozen questions.
    pub(super) fn fill<P: Port, const PLAIN: bool>(
        &mut self,
        due: Due,
        session: &mut Session<P>,
        stream: &mut Stream,
        tally: &mut Tally<'_>,
        mut schedule: Option<&mut Schedule>,
        report: &mut LoadReport,
    ) -> io::Result<bool> {
        let now = due.now;
        let mut has_pushed = false;
        if !PLAIN {
            if let Some(inserts) = &mut tally.inserts {
                inserts.look();
            }
            has_pushed = !tally.rmws.waiting.is_empty();
            if !self.push_updates(now, session, tally)? {
                return Ok(has_pushed);
            }
        }
        loop {
            let (index, mut left) = match self.current.take() {
                Some(current) => current,
                None => {
                    let begun = schedule.as_ref().map_or(now, |schedule| schedule.next());
                    if schedule.is_some() && begun >= due.until {
                        return Ok(has_pushed);
                    }
                    let Some(index) = tally.free.pop() else { return Ok(has_pushed) };
                    tally.batches[index as usize] = Batch { begun, left: self.batch as u32 };
                    if let Some(schedule) = &mut schedule {
                        schedule.advance();
                        report.due += u64::from(begun >= due.counting_from);
                    }
                    (index, self.batch)
                }
            };
            while left > 0 {
                if !PLAIN
                    && let Some(check) = &tally.check
                    && let Some(draw) = stream.ahead(LOOK_AHEAD)
                {
                    check.expect(draw.record());
                }
                let drawn = stream.current();
                let resolved = match &tally.inserts {
                    Some(inserts) if !PLAIN && drawn.kind().is_relative() => match inserts.resolve(drawn) {
                        Some(resolved) => Some(resolved),
                        None => {
                            self.current = Some((index, left));
                            return Ok(has_pushed);
                        }
                    },
                    _ => None,
                };
                let draw = resolved.as_ref().unwrap_or(drawn);
                let place = Place::of(index, self.batch - left, !PLAIN && tally.is_open);
                let check = if PLAIN { None } else { tally.check.as_mut() };
                let pushed = if !PLAIN && draw.is_traced() {
                    self.push_traced(now, session, draw, stream.key(draw), place, check)
                } else {
                    self.push(now, session, draw, || draw.key(), place, check)
                };
                match pushed {
                    Ok(()) => {}
                    Err(PushError::Full) => {
                        self.current = Some((index, left));
                        return Ok(has_pushed);
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
                if !PLAIN
                    && let Some(inserts) = &mut tally.inserts
                    && draw.kind() == Kind::Insert
                {
                    inserts.pushed();
                }
                stream.advance();
                left -= 1;
                has_pushed = true;
            }
        }
    }

    /// Pushes the puts of those who have read what they write; returns whether none is left.
    #[inline]
    pub(super) fn push_updates<P: Port>(
        &mut self,
        now: Instant,
        session: &mut Session<P>,
        tally: &mut Tally<'_>,
    ) -> io::Result<bool> {
        while let Some(&(place, record)) = tally.rmws.waiting.front() {
            let draw = Draw::new(record, Kind::Update);
            match self.push(now, session, &draw, || draw.key(), place, tally.check.as_mut()) {
                Ok(()) => drop(tally.rmws.waiting.pop_front()),
                Err(PushError::Full) => return Ok(false),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(true)
    }

    /// [`push`](Self::push) for an operation of a trace, whose key is elsewhere. Were it called with either key, the key would
    /// have to be written to memory and read back for each operation of the others, too.
    #[inline(never)]
    fn push_traced<P: Port>(
        &mut self,
        now: Instant,
        session: &mut Session<P>,
        draw: &Draw,
        key: Key<'_>,
        place: Place,
        check: Option<&mut ThreadCheck<'_>>,
    ) -> Result<(), PushError> {
        self.push(now, session, draw, || key, place, check)
    }

    /// `key` is asked where it is needed: handed over, it would be written to memory for the calls that are not inlined, and
    /// read back in another width, for which the CPU has to wait (some 4 ns).
    #[inline(always)]
    pub(super) fn push<'k, P: Port>(
        &mut self,
        now: Instant,
        session: &mut Session<P>,
        draw: &Draw,
        key: impl Fn() -> Key<'k>,
        place: Place,
        check: Option<&mut ThreadCheck<'_>>,
    ) -> Result<(), PushError> {
        let record = draw.record();
        // Looked up each time that it is tried: what is known grows while an operation waits for room.
        let (lo, lane) = check.as_ref().map_or((0, LaneNumber::NONE), |check| check.before_push(record));
        let tag = Tag::new(place, draw, lane).0;
        let written = if draw.is_put() {
            Some(self.push_write(now, session, draw, key(), tag)?)
        } else {
            session.push(now, Operation::get(key()), tag)?;
            None
        };
        if let Some(check) = check {
            check.pushed(place.index(), record, written, lo, lane);
        }
        Ok(())
    }

    /// Returns who wrote the value.
    #[inline(never)]
    fn push_write<P: Port>(
        &mut self,
        now: Instant,
        session: &mut Session<P>,
        draw: &Draw,
        key: Key<'_>,
        tag: u64,
    ) -> Result<u64, PushError> {
        if draw.is_traced() {
            return self.push_traced_write(now, session, draw, key, tag);
        }
        // Lengths need not be random, only mixed: a multiplication spreads the sequence over the range.
        let random = (self.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
        let value = &mut self.value[..self.value_len.pick(random)];
        let writer = writer(self.process, self.client, self.sequence);
        fill(value, draw.record(), writer);
        session.push(now, Operation::put(key, value), tag)?;
        self.sequence += 1;
        Ok(writer)
    }

    /// A write as a trace has it.
    fn push_traced_write<P: Port>(
        &mut self,
        now: Instant,
        session: &mut Session<P>,
        draw: &Draw,
        key: Key<'_>,
        tag: u64,
    ) -> Result<u64, PushError> {
        let writer = writer(self.process, self.client, self.sequence);
        let condition = match draw.kind() {
            Kind::PutIfAbsent => Condition::Absent,
            Kind::PutIfPresent => Condition::Present,
            _ => Condition::Always,
        };
        let operation = match draw.kind() {
            Kind::Delete => Operation::delete(key),
            Kind::Increment => Operation::add(key, 1, draw.ttl_ms()),
            Kind::Decrement => Operation::add(key, (-1_i64).cast_unsigned(), draw.ttl_ms()),
            _ => {
                let value = &mut self.value[..draw.value_len()];
                fill(value, draw.record(), writer);
                Operation::put_on(key, value, Terms::only_if(condition).for_ms(draw.ttl_ms()))
            }
        };
        session.push(now, operation, tag)?;
        self.sequence += 1;
        Ok(writer)
    }
}
