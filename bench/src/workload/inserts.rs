//! Records that are inserted while a run goes on: who inserts which, and which ones are there to be read.
//!
//! Every session inserts records with numbers of its own, behind those that were stored before the run, so that no two
//! sessions and no two processes insert the same one. The newest that are *acknowledged* may be read by all sessions of the
//! process. Which these are is a number per session, in a cache line of its own, which the others read turn by turn.

use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{Draw, Kind, RECORDS_MAX, Stream};

/// Most records that a process inserts, 8 Mi: 17 s at 10 M op/s of which 5 % insert. After that it begins again with the
/// first one inserted, which by then is the oldest and hardly read any more, so that memory is bounded.
pub const INSERTS_MAX: u32 = 1 << 23;

/// Fewest records that a session inserts before it begins again.
pub const INSERTS_MIN: u32 = 1 << 13;

/// A session inserts at most so far beyond its oldest insert that is not acknowledged: 65 ms at 5 M op/s of which 5 % insert,
/// many times what it takes to send something again.
const AHEAD_MAX: u64 = 1 << 14;

/// Sessions that one looks at per turn: with many sessions looking at all of them would cost more than all else.
const LOOKS_PER_TURN: usize = 8;

/// The readable inserts of a session. Alone in two cache lines, since processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Acknowledged(AtomicU64);

/// What the sessions of a process know of each other's inserts.
#[derive(Debug)]
pub struct Inserts {
    /// Records stored before the run.
    records: u32,
    /// First record inserted by this process.
    first: u32,
    /// Records that each session inserts before it begins again.
    capacity: u32,
    acknowledged: Box<[Acknowledged]>,
}

impl Inserts {
    /// Lets `streams`, one for each session of the process with this number, insert up to `most` records in all, at least
    /// [`INSERTS_MIN`] each.
    ///
    /// # Errors
    /// A sentence when there are not enough numbers left.
    pub fn begin(records: u32, process: u16, most: u32, streams: &mut [Stream]) -> anyhow::Result<()> {
        let sessions = streams.len() as u32;
        let (first, capacity) = Self::numbers(records, process, most, sessions)?;
        let acknowledged = streams.iter().map(|_| Acknowledged::default()).collect();
        let inserts = Arc::new(Self { records, first, capacity, acknowledged });
        for (session, stream) in (0..).zip(streams) {
            stream.inserts = Some((Arc::clone(&inserts), session));
        }
        Ok(())
    }

    /// The first record that a process inserts, and how many each of its sessions has.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn numbers(records: u32, process: u16, most: u32, sessions: u32) -> anyhow::Result<(u32, u32)> {
        let capacity = (most.min(INSERTS_MAX) / sessions.max(1)).max(INSERTS_MIN);
        let first = u64::from(records) + u64::from(process) * u64::from(INSERTS_MAX);
        let end = first + u64::from(capacity) * u64::from(sessions);
        anyhow::ensure!(
            end <= RECORDS_MAX.into(),
            "--workload d leaves no numbers for the records that it inserts: with process {process} and {sessions} sessions, \
             --records may be up to {}",
            u64::from(RECORDS_MAX).saturating_sub(end - u64::from(records))
        );
        Ok((first as u32, capacity))
    }

    /// The part of one session, from the beginning.
    #[must_use]
    pub fn lane(self: &Arc<Self>, session: u32) -> InsertLane {
        let ahead_max = AHEAD_MAX.min(u64::from(self.capacity.next_power_of_two()) / 4);
        InsertLane {
            inserts: Arc::clone(self),
            session,
            next_slot: 0,
            oldest_slot: 0,
            pushed: 0,
            count: 0,
            ended: vec![0; ahead_max as usize / 64].into(),
            newest: iter::repeat_n(Newest::default(), self.acknowledged.len()).collect(),
            next_look: 0,
        }
    }
}

/// The readable inserts of a session.
#[derive(Clone, Copy, Debug, Default)]
struct Newest {
    /// Slot of the newest.
    slot: u32,
    /// How many there are.
    count: u32,
}

impl Newest {
    const fn from_bits(bits: u64) -> Self {
        Self { slot: (bits >> 32) as u32, count: bits as u32 }
    }

    const fn bits(self) -> u64 {
        (self.slot as u64) << 32 | self.count as u64
    }
}

/// What one session inserts, and what it reads of all sessions' inserts.
#[derive(Debug)]
pub struct InsertLane {
    inserts: Arc<Inserts>,
    session: u32,
    /// Slot of the next insert. A slot is the number of an insert modulo the capacity.
    next_slot: u32,
    /// Slot of the oldest insert that is not acknowledged.
    oldest_slot: u32,
    /// Inserts pushed.
    pushed: u64,
    /// Inserts before the oldest that is not acknowledged.
    count: u64,
    /// A bit for each insert behind these that has ended, by its number modulo their count.
    ended: Box<[u64]>,
    newest: Box<[Newest]>,
    /// Whose inserts are looked at next.
    next_look: usize,
}

impl InsertLane {
    /// Looks what some other sessions have inserted, and the next time what the next ones have; to be called once per turn.
    #[inline]
    pub fn look(&mut self) {
        let all = &self.inserts.acknowledged;
        for _ in 0..all.len().min(LOOKS_PER_TURN) {
            self.newest[self.next_look] = Newest::from_bits(all[self.next_look].0.load(Relaxed));
            self.next_look += 1;
            if self.next_look == all.len() {
                self.next_look = 0;
            }
        }
    }

    /// What a draw whose record depends on inserts comes to now; `None` when an insert must wait for the acknowledgement of
    /// others.
    #[inline]
    #[must_use]
    pub fn resolve(&self, draw: &Draw) -> Option<Draw> {
        if draw.kind() == Kind::Insert {
            let has_room = self.pushed - self.count < self.ahead_max();
            return has_room.then(|| Draw::new(self.record(self.session, self.next_slot), Kind::Insert));
        }
        let rank = self.inserts.records - 1 - draw.record();
        Some(Draw::new(self.latest(rank), Kind::GetLatest))
    }

    /// The record that `rank` others are newer than, `rank` being below the number of records stored before the run. The sessions
    /// insert at the same pace, or nearly so: the newest of each come first, then the second newest of each.
    fn latest(&self, rank: u32) -> u32 {
        let sessions = self.newest.len() as u32;
        let (age, session) = if sessions == 1 { (rank, 0) } else { (rank / sessions, rank % sessions) };
        let newest = self.newest[session as usize];
        if age < newest.count {
            let slot =
                newest.slot.checked_sub(age).unwrap_or_else(|| newest.slot + self.inserts.capacity - age);
            return self.record(session, slot);
        }
        // This session has no more: its part of the records that were stored before.
        self.inserts.records - 1 - ((age - newest.count) * sessions + session)
    }

    fn record(&self, session: u32, slot: u32) -> u32 {
        self.inserts.first + slot * self.newest.len() as u32 + session
    }

    const fn ahead_max(&self) -> u64 {
        self.ended.len() as u64 * 64
    }

    /// The insert that [`resolve`](Self::resolve) came to was pushed.
    #[inline]
    pub fn pushed(&mut self) {
        self.pushed += 1;
        self.next_slot = self.following(self.next_slot);
    }

    /// The insert of `record` has ended. One that failed counts too: it is not waited for, and a get of it will tell.
    #[inline]
    pub fn ended(&mut self, record: u32) {
        let slot = (record - self.inserts.first) / self.newest.len() as u32;
        let ahead = slot
            .checked_sub(self.oldest_slot)
            .unwrap_or_else(|| slot + self.inserts.capacity - self.oldest_slot);
        self.set(self.count + u64::from(ahead), true);
        while self.has_ended(self.count) {
            self.set(self.count, false);
            self.count += 1;
            self.oldest_slot = self.following(self.oldest_slot);
        }
        // Before the oldest that has not ended.
        let slot = self.oldest_slot.checked_sub(1).unwrap_or(self.inserts.capacity - 1);
        let newest = Newest { slot, count: self.count.min(self.inserts.capacity.into()) as u32 };
        self.newest[self.session as usize] = newest;
        self.inserts.acknowledged[self.session as usize].0.store(newest.bits(), Relaxed);
    }

    fn following(&self, slot: u32) -> u32 {
        if slot + 1 == self.inserts.capacity { 0 } else { slot + 1 }
    }

    fn has_ended(&self, number: u64) -> bool {
        let bit = number % self.ahead_max();
        self.ended[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }

    fn set(&mut self, number: u64, to: bool) {
        let bit = number % self.ahead_max();
        let word = &mut self.ended[(bit / 64) as usize];
        *word = *word & !(1 << (bit % 64)) | u64::from(to) << (bit % 64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::workload::{KeyDistribution, StreamLaw, Theta, Workload, draw_streams};

    const RECORDS: u32 = 1_000;

    fn lanes(process: u16, sessions: usize) -> Vec<InsertLane> {
        let keys = KeyDistribution::Latest(Theta::YCSB);
        let law = StreamLaw { workload: Workload::D, read_share: None, keys, records: RECORDS };
        let mut streams = draw_streams(&law, sessions, 10, 1, |_| {});
        Inserts::begin(RECORDS, process, 0, &mut streams).unwrap();
        streams.iter().map(|stream| stream.insert_lane().unwrap()).collect()
    }

    fn insert(lane: &mut InsertLane) -> Option<u32> {
        let draw = lane.resolve(&Draw::new(0, Kind::Insert))?;
        lane.pushed();
        Some(draw.record())
    }

    fn latest(lane: &InsertLane, rank: u32) -> u32 {
        let draw = lane.resolve(&Draw::new(RECORDS - 1 - rank, Kind::GetLatest)).unwrap();
        assert_eq!(draw.key().bytes(), draw.record().to_string().as_bytes());
        draw.record()
    }

    /// Goal: no record is inserted twice, nor one that was stored before. Method: the inserts of three sessions in two
    /// processes, up to where they begin again.
    #[test]
    fn every_insert_is_a_new_record() {
        let mut seen = HashSet::new();
        for process in [0, 3] {
            for lane in &mut lanes(process, 3) {
                let first = insert(lane).unwrap();
                lane.ended(first);
                assert!(seen.insert(first) && first >= RECORDS);
                for _ in 1..INSERTS_MIN {
                    let record = insert(lane).unwrap();
                    lane.ended(record);
                    assert!(seen.insert(record) && record >= RECORDS, "{record}");
                }
                assert_eq!(insert(lane), Some(first));
            }
        }
    }

    /// Goal: the latest record is the newest acknowledged one, wherever it comes from, and ranks go back to the records
    /// stored before without gap or repetition. Method: one and three sessions; inserts acknowledged out of order.
    #[test]
    fn the_latest_are_those_acknowledged() {
        let mut alone = lanes(0, 1);
        let lane = &mut alone[0];
        assert_eq!([0, 1, RECORDS - 1].map(|rank| latest(lane, rank)), [999, 998, 0]);
        let inserted: Vec<_> = (0..3).map(|_| insert(lane).unwrap()).collect();
        assert_eq!(inserted, [1_000, 1_001, 1_002]);
        lane.ended(1_001);
        lane.look();
        assert_eq!(latest(lane, 0), 999, "an older one is not acknowledged");
        lane.ended(1_000);
        lane.look();
        assert_eq!([0, 1, 2, RECORDS - 1].map(|rank| latest(lane, rank)), [1_001, 1_000, 999, 2]);

        let mut three = lanes(0, 3);
        for (session, count) in [(0, 2), (2, 5)] {
            for _ in 0..count {
                let record = insert(&mut three[session]).unwrap();
                three[session].ended(record);
            }
        }
        let lane = &mut three[1];
        lane.look();
        // Session 0 has inserted 1000 and 1003, session 2 every third from 1002 on.
        assert_eq!([0, 2, 3, 5].map(|rank| latest(lane, rank)), [1_003, 1_014, 1_000, 1_011]);
        let all: HashSet<_> = (0..RECORDS).map(|rank| latest(lane, rank)).collect();
        assert_eq!(all.len(), RECORDS as usize);
        assert_eq!(all.iter().filter(|&&record| record >= RECORDS).count(), 7);
    }

    /// Goal: after the last number the first is used again, and reading goes on over the seam. Method: one and a half
    /// rounds.
    #[test]
    fn numbers_are_used_again() {
        let lane = &mut lanes(0, 1)[0];
        for number in 0..INSERTS_MIN + INSERTS_MIN / 2 {
            let record = insert(lane).unwrap();
            assert_eq!(record, RECORDS + number % INSERTS_MIN);
            lane.ended(record);
            lane.look();
            assert_eq!(latest(lane, 0), record);
        }
        let half = INSERTS_MIN / 2;
        assert_eq!(latest(lane, RECORDS - 1), RECORDS + half - RECORDS);
    }

    /// Goal: with more sessions than are looked at in a turn all are seen after some turns, and one's own at once. Method: twenty
    /// sessions with an insert each, and turns of the first of them.
    #[test]
    fn all_sessions_are_seen_in_turn() {
        let mut lanes = lanes(0, 20);
        let newest = |lane: &InsertLane| (0..20).filter(|&rank| latest(lane, rank) >= RECORDS).count();
        let record = insert(&mut lanes[0]).unwrap();
        lanes[0].ended(record);
        assert_eq!((newest(&lanes[0]), newest(&lanes[19])), (1, 0));
        for lane in &mut lanes[1..] {
            let record = insert(lane).unwrap();
            lane.ended(record);
        }
        let seen = [(); 3].map(|()| {
            lanes[0].look();
            newest(&lanes[0])
        });
        assert_eq!(seen, [8, 16, 20]);
    }

    /// Goal: inserts wait for one that is never acknowledged, and go on when it is. Method: leave out the first.
    #[test]
    fn inserts_wait_for_a_straggler() {
        let lane = &mut lanes(0, 1)[0];
        let straggler = insert(lane).unwrap();
        let mut count = 1;
        while let Some(record) = insert(lane) {
            lane.ended(record);
            count += 1;
        }
        assert_eq!((count, lane.count), (lane.ahead_max(), 0));
        lane.ended(straggler);
        assert_eq!(lane.count, count);
        assert!(insert(lane).is_some());
    }

    /// Goal: it is said when there are no numbers left. Method: the most records that there can be.
    #[test]
    fn running_out_of_numbers_is_refused() {
        let keys = KeyDistribution::Uniform;
        let law = StreamLaw { workload: Workload::D, read_share: None, keys, records: 1 };
        let mut streams = draw_streams(&law, 2, 10, 1, |_| {});
        let error = Inserts::begin(RECORDS_MAX, 0, 0, &mut streams).unwrap_err().to_string();
        let most = RECORDS_MAX - 2 * INSERTS_MIN;
        assert!(error.ends_with(&format!("--records may be up to {most}")), "{error}");
        Inserts::begin(most, 0, 0, &mut streams).unwrap();
    }
}
