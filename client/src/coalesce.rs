//! Equal gets that travel once: of those that would go in the same request only the first does, and its answer is every
//! one's.
//!
//! That is sound because they are concurrent. An answer is the value at some moment after its request was sent, and a get
//! joins only while that has not happened: so the moment lies between the joining get's call and its end, as it must. To
//! join a request on its way would be wrong, however soon after: the server may have executed it already, somebody's put
//! may have been acknowledged since, and the joining get, called after that, would be told of the value before. Therefore
//! only the request that a core's flow is filling right now ([`Flow::open_gets`]) can be joined, and a table of the
//! keys in it is all there is to know; the next request begins with an empty one.

use linerate_proto::{
    Instant, Key,
    flow::{Ended, Flow, Outcome, PushError, check_lengths},
    hash::key_hash,
    wire::{Operation, OperationKind},
};

/// Places of a table: a power of two, and twice as many as a request has operations.
const PLACES: usize = 512;

/// No ticket.
const NONE: u32 = u32::MAX;

/// What has joined what, over all cores of a session. Every operation gets a ticket, which travels in place of the
/// caller's tag, and the tickets of gets that joined another hang on that one's.
///
/// There are as many tickets as the windows of all cores have room for operations, and a table for each core. Both grow to
/// what is needed and are then used again and again.
#[derive(Debug)]
pub(crate) struct Coalescing {
    tickets: Vec<Ticket>,
    free: Vec<u32>,
    /// Tickets per core, at most.
    tickets_per_core: usize,
    /// One for each core.
    open: Vec<OpenRequest>,
    /// Operations answered by another's answer.
    coalesced: u64,
}

#[derive(Clone, Copy, Debug)]
struct Ticket {
    tag: u64,
    /// The next of those that end together with this one.
    next: u32,
    is_free: bool,
}

impl Coalescing {
    /// For requests of up to `operations_max`, `window` of them in flight to each core.
    pub(crate) fn new(window: u16, operations_max: u8) -> Self {
        Self {
            tickets: Vec::new(),
            free: Vec::new(),
            tickets_per_core: usize::from(window) * usize::from(operations_max),
            open: Vec::new(),
            coalesced: 0,
        }
    }

    /// Operations answered by another's answer so far.
    pub(crate) const fn coalesced(&self) -> u64 {
        self.coalesced
    }

    /// Gives an operation to `flow`, which is that of core number `core` of `cores`, unless it is a get that another one
    /// there stands for.
    ///
    /// # Errors
    /// As [`Flow::push`]; and [`PushError::Full`] when so many gets have joined others that the tickets are used up.
    pub(crate) fn push(
        &mut self,
        flow: &mut Flow,
        (core, cores): (usize, usize),
        now: Instant,
        operation: Operation<'_>,
        tag: u64,
    ) -> Result<(), PushError> {
        let Some(ticket) = self.begin(tag, cores) else {
            return check_lengths(&operation).and(Err(PushError::Full));
        };
        if operation.kind != OperationKind::Get {
            return flow.push(now, operation, ticket.into()).inspect_err(|_| self.release(ticket));
        }
        if self.open.len() < cores {
            self.open.resize_with(cores, OpenRequest::default);
        }
        let (key, hash) = (operation.key, key_hash(operation.key));
        let equal = flow.open_gets().and_then(|number| self.open[core].find(number, hash, key));
        // One that has ended takes nobody along. Those of a request that was not sent have not.
        if let Some(equal) = equal.filter(|&equal| !self.tickets[equal as usize].is_free) {
            self.join(ticket, equal);
            return Ok(());
        }
        flow.push(now, operation, ticket.into()).inspect_err(|_| self.release(ticket))?;
        // With its last operation a request is complete, and nothing can join it any more.
        if let Some(number) = flow.open_gets() {
            self.open[core].insert(number, hash, key, ticket);
        }
        Ok(())
    }

    /// Tells the caller that an operation has ended, and all that have joined it.
    #[inline]
    pub(crate) fn end(&mut self, ended: Ended<'_>, mut sink: impl FnMut(Ended<'_>)) {
        let is_answered = matches!(ended.outcome, Outcome::Value(_) | Outcome::NotFound);
        let mut ticket = ended.tag as u32;
        loop {
            let Ticket { tag, next, .. } = self.tickets[ticket as usize];
            self.release(ticket);
            sink(Ended { tag, ..ended });
            if next == NONE {
                return;
            }
            self.coalesced += u64::from(is_answered);
            ticket = next;
        }
    }

    /// A ticket for an operation that begins now.
    #[inline]
    fn begin(&mut self, tag: u64, cores: usize) -> Option<u32> {
        let ticket = Ticket { tag, next: NONE, is_free: false };
        if let Some(index) = self.free.pop() {
            self.tickets[index as usize] = ticket;
            return Some(index);
        }
        (self.tickets.len() < self.tickets_per_core * cores).then(|| {
            self.tickets.push(ticket);
            self.tickets.len() as u32 - 1
        })
    }

    /// Has an operation end together with another one.
    #[inline]
    fn join(&mut self, ticket: u32, other: u32) {
        self.tickets[ticket as usize].next = self.tickets[other as usize].next;
        self.tickets[other as usize].next = ticket;
    }

    #[inline]
    fn release(&mut self, ticket: u32) {
        self.tickets[ticket as usize].is_free = true;
        self.free.push(ticket);
    }
}

/// The keys of the request that one core's flow is filling: a hash table with linear probing.
#[derive(Debug)]
struct OpenRequest {
    /// The request's number.
    number: u64,
    /// Position in `gets` plus one; 0 where there is none.
    places: [u16; PLACES],
    gets: Vec<OpenGet>,
    /// Their keys, one behind the other: no longer together than the request.
    keys: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct OpenGet {
    hash: u64,
    ticket: u32,
    key_start: u16,
    key_len: u8,
}

impl Default for OpenRequest {
    fn default() -> Self {
        // Requests are numbered from 1 on.
        Self { number: 0, places: [0; PLACES], gets: Vec::new(), keys: Vec::new() }
    }
}

impl OpenRequest {
    /// The ticket of the get of `key`, if the open request is this one and has such a get.
    #[inline]
    fn find(&self, number: u64, hash: u64, key: Key<'_>) -> Option<u32> {
        if self.number != number {
            return None;
        }
        let mut place = Self::place_of(hash);
        while let Some(index) = self.places[place].checked_sub(1) {
            let get = &self.gets[usize::from(index)];
            // Equal hashes are no equal keys: whoever likes can make some, for the hash is public.
            if get.hash == hash && self.key(get) == key.bytes() {
                return Some(get.ticket);
            }
            place = (place + 1) % PLACES;
        }
        None
    }

    /// Adds a get to a request, which has no other of this key.
    #[inline]
    fn insert(&mut self, number: u64, hash: u64, key: Key<'_>, ticket: u32) {
        if self.number != number {
            self.number = number;
            self.places.fill(0);
            self.gets.clear();
            self.keys.clear();
        }
        let key_start = self.keys.len() as u16;
        self.keys.extend_from_slice(key.bytes());
        self.gets.push(OpenGet { hash, ticket, key_start, key_len: key.len() as u8 });
        let mut place = Self::place_of(hash);
        while self.places[place] != 0 {
            place = (place + 1) % PLACES;
        }
        self.places[place] = self.gets.len() as u16;
    }

    /// Where to look first. The highest bits of the hash are those that a core's keys have in common.
    #[inline]
    const fn place_of(hash: u64) -> usize {
        hash as usize % PLACES
    }

    #[inline]
    fn key(&self, get: &OpenGet) -> &[u8] {
        &self.keys[usize::from(get.key_start)..][..usize::from(get.key_len)]
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use linerate_proto::{
        flow::FlowConfig,
        wire::{Reason, nonce_of},
    };
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    fn ended(ticket: u32, outcome: Outcome<'_>) -> Ended<'_> {
        Ended { tag: ticket.into(), outcome, version: 3, ttl_ms: None, data_epoch: 9 }
    }

    /// Goal: a table tells keys apart, also those whose hashes are equal, and knows one request only. Method: a full request
    /// of keys with hashes from few values, looked up among others, then asked as another request.
    #[test]
    fn tables_find_the_keys_of_one_request() {
        let keys: Vec<Vec<u8>> =
            (0..255u32).map(|number| number.to_be_bytes().repeat(1 + number as usize % 3)).collect();
        for hashes in [1, 7, u64::MAX] {
            let hash = |key: &[u8]| key_hash(Key::new(key)) % hashes;
            let mut open = OpenRequest::default();
            for request in 1..4 {
                for (key, ticket) in keys.iter().zip(0..) {
                    assert_eq!(open.find(request, hash(key), Key::new(key)), None);
                    open.insert(request, hash(key), Key::new(key), ticket);
                }
                for (key, ticket) in keys.iter().zip(0..) {
                    assert_eq!(open.find(request, hash(key), Key::new(key)), Some(ticket));
                    assert_eq!(open.find(request + 1, hash(key), Key::new(key)), None, "another request");
                }
                for key in [&[][..], &[0], &[0; 5], &[1; 255]] {
                    assert_eq!(open.find(request, hash(key), Key::new(key)), None);
                }
            }
        }
    }

    /// Goal: every operation ends once and with the answer that it is to have, and what is used is used again. Method: random
    /// joins and ends against a model; tickets never exceed their number, and then the next operation finds no room.
    #[test]
    fn each_ticket_ends_once_and_is_used_again() {
        const SEED: u64 = 0x636f_616c;
        println!("seed {SEED:#x}");
        let mut random = StdRng::seed_from_u64(SEED);
        let mut coalescing = Coalescing::new(3, 20);
        // Travelling tickets with the tags that end together.
        let mut travelling: HashMap<u32, Vec<u64>> = HashMap::new();
        let (mut expected, mut refused) = (0, 0);
        for tag in 0..20_000 {
            let in_flight: usize = travelling.values().map(Vec::len).sum();
            let heads: Vec<_> = travelling.keys().copied().collect();
            if !heads.is_empty() && random.random_bool(0.02) {
                let head = heads[random.random_range(0..heads.len())];
                let outcome =
                    [Outcome::Value(b"v"), Outcome::NotFound, Outcome::NotExecuted(Reason::Deadline)]
                        [random.random_range(0..3)];
                let mut told = Vec::new();
                coalescing.end(ended(head, outcome), |ended| {
                    assert_eq!((ended.outcome, ended.version, ended.data_epoch), (outcome, 3, 9));
                    told.push(ended.tag);
                });
                let mut tags = travelling.remove(&head).unwrap();
                expected +=
                    if outcome == Outcome::NotExecuted(Reason::Deadline) { 0 } else { tags.len() as u64 - 1 };
                told.sort_unstable();
                tags.sort_unstable();
                assert_eq!(told, tags);
                assert_eq!(coalescing.coalesced(), expected);
            }
            let Some(ticket) = coalescing.begin(tag, 2) else {
                refused += 1;
                assert!(in_flight > 0);
                continue;
            };
            match heads.iter().find(|head| travelling.contains_key(head)) {
                Some(head) if random.random_bool(0.7) => {
                    coalescing.join(ticket, *head);
                    travelling.get_mut(head).unwrap().push(tag);
                }
                _ => assert_eq!(travelling.insert(ticket, vec![tag]), None),
            }
        }
        assert!(refused > 100, "the tickets were used up now and then");
        assert_eq!(coalescing.tickets.len(), 3 * 20 * 2);
    }

    /// Goal: what the flow does not take leaves nothing behind, and is refused for the flow's reason. Method: a flow that has
    /// no session, and keys outside the limits, far more often than there are tickets.
    #[test]
    fn what_is_not_taken_holds_no_ticket() {
        let mut flow = Flow::new(FlowConfig {
            window: 2,
            operations_max: 5,
            checksum: false,
            versions: false,
            lifetimes: false,
            rto_floor: Duration::from_millis(1),
            timeout: Duration::from_secs(1),
            reply_datagrams_max: 100,
            core: None,
            epoch: 0,
            seed: nonce_of(1, 1),
        });
        let mut coalescing = Coalescing::new(2, 5);
        let mut push = |operation| coalescing.push(&mut flow, (0, 1), Instant::default(), operation, 7);
        for _ in 0..100 {
            assert_eq!(push(Operation::get(b"key")), Err(PushError::Full));
            assert_eq!(push(Operation::delete(b"key")), Err(PushError::Full));
            assert_eq!(push(Operation::get(b"")), Err(PushError::KeyLen(0)));
            assert_eq!(push(Operation::get(&[0; 256])), Err(PushError::KeyLen(256)));
        }
        assert_eq!((coalescing.tickets.len(), coalescing.free.len()), (1, 1));
        // Nor when there is no ticket either.
        while coalescing.begin(1, 1).is_some() {}
        let mut push = |operation| coalescing.push(&mut flow, (0, 1), Instant::default(), operation, 7);
        assert_eq!(push(Operation::get(b"key")), Err(PushError::Full));
        assert_eq!(push(Operation::get(b"")), Err(PushError::KeyLen(0)));
    }
}
