//! Walking around a ring that two sides own frame by frame: index arithmetic without any memory, so that all of it can be
//! tried.
//!
//! ```text
//!  frame    0   1   2   3   4   5   6   7
//!               └ first ┘       ▲
//!               held: 2         next to look at: first + held, modulo 8
//! ```

/// The frames of a ring that one side holds, one after the other: those from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Walk {
    first: u32,
    held: u32,
    count: u32,
}

impl Walk {
    /// A ring of `count` frames, none of them held; the first to take is frame 0.
    ///
    /// # Panics
    /// Without a frame.
    pub(crate) const fn new(count: u32) -> Self {
        assert!(count > 0, "a ring without frames");
        Self { first: 0, held: 0, count }
    }

    /// The frame that would be taken next; `None` while all are held.
    #[inline]
    pub(crate) const fn next(&self) -> Option<u32> {
        if self.held == self.count { None } else { Some((self.first + self.held) % self.count) }
    }

    /// Takes the frame that [`next`](Self::next) told.
    ///
    /// # Panics
    /// While all are held.
    #[inline]
    pub(crate) const fn take(&mut self) {
        assert!(self.held < self.count, "a frame too many");
        self.held += 1;
    }

    /// The frame held for longest, which is the first to go.
    #[inline]
    pub(crate) const fn oldest(&self) -> Option<u32> {
        if self.held == 0 { None } else { Some(self.first) }
    }

    /// The frame taken last.
    #[inline]
    pub(crate) const fn newest(&self) -> Option<u32> {
        if self.held == 0 { None } else { Some((self.first + self.held - 1) % self.count) }
    }

    /// Lets go of the oldest frame.
    ///
    /// # Panics
    /// When none is held.
    #[inline]
    pub(crate) const fn let_go(&mut self) {
        assert!(self.held > 0, "no frame to let go of");
        self.first = (self.first + 1) % self.count;
        self.held -= 1;
    }

    /// The frames held, oldest first.
    pub(crate) fn held(&self) -> impl Iterator<Item = u32> + use<> {
        let Self { first, held, count } = *self;
        (0..held).map(move |index| (first + index) % count)
    }

    /// How many frames are held.
    pub(crate) const fn held_count(&self) -> u32 {
        self.held
    }

    /// Frames in the ring.
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// What a status word says, and for frames of the port which datagram is in it.
    type Status = Option<u32>;

    /// A receive ring with both sides, each between two of its accesses to memory.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Model {
        frames: Vec<Status>,
        /// The kernel's place.
        head: u32,
        /// Datagrams that arrived so far; those that find the head taken are lost.
        arrived: u32,
        lost: Vec<u32>,
        walk: Walk,
        /// What the port has lent: numbers that have to stay in the frames.
        lent: Vec<u32>,
        seen: Vec<u32>,
        phase: Phase,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    enum Phase {
        /// Gives back what was lent, one frame per step.
        GiveBack,
        /// Looks at one frame per step; ends at one that is the kernel's, or whenever a burst is full.
        Take,
    }

    /// How the port walks; all but the first are wrong.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Port {
        Right,
        /// Gives back before the datagram was read.
        GivesBackAtOnce,
        /// Forgets that the burst's frames are held when it looks for the next.
        ForgetsWhatIsHeld,
        /// Goes on behind a frame that is still the kernel's.
        SkipsEmpty,
    }

    const ARRIVALS: u32 = 7;

    impl Model {
        fn new(count: u32) -> Self {
            Self {
                frames: vec![None; count as usize],
                head: 0,
                arrived: 0,
                lost: vec![],
                walk: Walk::new(count),
                lent: vec![],
                seen: vec![],
                phase: Phase::GiveBack,
            }
        }

        /// One datagram arrives (`tpacket_rcv`, net/packet/af_packet.c).
        fn kernel_step(&mut self) {
            let number = self.arrived;
            self.arrived += 1;
            let head = &mut self.frames[self.head as usize];
            if head.is_some() {
                return self.lost.push(number);
            }
            *head = Some(number);
            self.head = (self.head + 1) % self.walk.count();
        }

        /// One access of the port to a status word.
        fn port_step(&mut self, port: Port) {
            match (self.phase, self.walk.oldest()) {
                (Phase::GiveBack, None) => self.phase = Phase::Take,
                (Phase::GiveBack, Some(frame)) => {
                    self.frames[frame as usize] = None;
                    self.lent.remove(0);
                    self.walk.let_go();
                }
                (Phase::Take, _) => {
                    let next = match port {
                        Port::ForgetsWhatIsHeld => self.walk.oldest().or_else(|| self.walk.next()),
                        _ => self.walk.next(),
                    };
                    let number = next.and_then(|frame| self.frames[frame as usize]);
                    if let Some(number) = number {
                        self.seen.push(number);
                        self.lent.push(number);
                        self.walk.take();
                        if port == Port::GivesBackAtOnce {
                            self.frames[next.unwrap() as usize] = None;
                        }
                    } else {
                        self.phase = Phase::GiveBack;
                        if port == Port::SkipsEmpty && next.is_some() {
                            self.walk.take();
                            self.walk.let_go();
                        }
                    }
                }
            }
        }

        /// Datagrams come in order, each once, none is lost that had room, and what is lent stays.
        fn is_right(&self) -> bool {
            let in_order = self.seen.windows(2).all(|pair| pair[0] < pair[1]);
            let waiting = self.frames.iter().flatten().filter(|number| !self.lent.contains(number)).count();
            let all_there = self.seen.len() + self.lost.len() + waiting == self.arrived as usize;
            let held: Vec<_> = self.walk.held().map(|frame| self.frames[frame as usize]).collect();
            in_order && all_there && held == self.lent.iter().copied().map(Some).collect::<Vec<_>>()
        }
    }

    /// Tries every order of the two sides' steps; `None` when something went wrong, else the number of states seen.
    fn try_all(count: u32, port: Port) -> Option<usize> {
        let mut known = HashSet::new();
        let mut open = vec![Model::new(count)];
        while let Some(model) = open.pop() {
            if !model.is_right() {
                return None;
            }
            if !known.insert(model.clone()) {
                continue;
            }
            if model.arrived < ARRIVALS {
                let mut next = model.clone();
                next.kernel_step();
                open.push(next);
            }
            let mut next = model;
            next.port_step(port);
            open.push(next);
        }
        Some(known.len())
    }

    /// Goal: no order of the kernel's and the port's steps loses, repeats, reorders or overwrites a datagram. Method: all
    /// orders for small rings; three wrong ways to walk are found out by the same search.
    #[test]
    fn no_order_of_steps_breaks_the_ring() {
        for count in [1, 2, 4] {
            let states = try_all(count, Port::Right).expect("a right walk");
            assert!(states > 50, "{states} states of a ring of {count}");
        }
        for wrong in [Port::GivesBackAtOnce, Port::ForgetsWhatIsHeld, Port::SkipsEmpty] {
            assert!(
                [2, 4].iter().any(|&count| try_all(count, wrong).is_none()),
                "{wrong:?} is not found out"
            );
        }
    }

    /// Goal: a sending ring hands frames to the kernel and takes them back in order. Method: all orders of handing over,
    /// of the kernel finishing the frame at its head, and of reaping; frames are taken in the order that they were freed.
    #[test]
    fn no_order_of_steps_breaks_the_sending_ring() {
        #[derive(Clone, PartialEq, Eq, Hash)]
        struct Sending {
            frames: Vec<Status>,
            head: u32,
            walk: Walk,
            handed_over: u32,
            sent: u32,
        }
        for count in [1, 2, 4] {
            let start = Sending {
                frames: vec![None; count],
                head: 0,
                walk: Walk::new(count as u32),
                handed_over: 0,
                sent: 0,
            };
            let (mut known, mut open) = (HashSet::new(), vec![start]);
            while let Some(state) = open.pop() {
                if !known.insert(state.clone()) {
                    continue;
                }
                if let Some(frame) = state.walk.next().filter(|_| state.handed_over < ARRIVALS) {
                    let mut next = state.clone();
                    assert!(next.frames[frame as usize].is_none(), "frame {frame} is the kernel's");
                    next.frames[frame as usize] = Some(next.handed_over);
                    next.handed_over += 1;
                    next.walk.take();
                    assert_eq!(next.walk.newest(), Some(frame));
                    open.push(next);
                }
                if let Some(number) = state.frames[state.head as usize] {
                    let mut next = state.clone();
                    assert_eq!(number, next.sent, "sent in order");
                    next.sent += 1;
                    next.frames[next.head as usize] = None;
                    next.head = (next.head + 1) % count as u32;
                    open.push(next);
                }
                if let Some(frame) =
                    state.walk.oldest().filter(|&frame| state.frames[frame as usize].is_none())
                {
                    let mut next = state;
                    next.walk.let_go();
                    assert!(next.walk.held().all(|held| held != frame));
                    open.push(next);
                }
            }
            let done = |state: &Sending| state.sent == ARRIVALS && state.walk.oldest().is_none();
            assert!(known.iter().any(done), "everything can be sent and taken back");
        }
    }
}
