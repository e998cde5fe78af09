//! The judge can say no: bad histories are flagged by the rule that they break, and legal ones by none.

use linerate_client::{Condition, Ended, Outcome, Reason};
use linerate_sim::{
    check::{
        Ask, Call, Checker, Rule,
        register::{self, Access, Span},
    },
    value::{Origin, write_value},
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

const EPOCH: u64 = 0xe0;
const NEXT_EPOCH: u64 = 0x7; // Epochs are names: the later one need not be greater.
const LEN: usize = 32;

/// A history being told to a judge; one server has started.
struct Story {
    checker: Checker,
    epoch: u64,
}

impl Story {
    fn new() -> Self {
        let mut checker = Checker::new();
        checker.server_started(EPOCH);
        Self { checker, epoch: EPOCH }
    }

    fn call(&mut self, client: u16, key: u16, ask: Ask) -> u32 {
        let tag = self.checker.next_tag();
        // Keys 0 to 9 live on shard 0, the next ten on shard 1.
        self.checker.called(Call { key, shard: (key / 10) as u8, client, ask });
        tag
    }

    fn get(&mut self, key: u16) -> u32 {
        self.call(1, key, Ask::Get)
    }

    fn put(&mut self, key: u16) -> u32 {
        self.call(2, key, Ask::Put { len: LEN })
    }

    fn delete(&mut self, key: u16) -> u32 {
        self.call(3, key, Ask::Delete)
    }

    fn end(&mut self, tag: u32, outcome: Outcome<'_>, version: u64) {
        self.checker.ended(Ended { tag: tag.into(), outcome, version, ttl_ms: None, data_epoch: self.epoch });
    }

    /// A read ends with the value that `put` wrote to `key`.
    fn end_with(&mut self, tag: u32, key: u16, put: u32, version: u64) {
        let mut value = Vec::new();
        write_value(&mut value, Origin { key, writer: 2, tag: put }, LEN);
        self.end(tag, Outcome::Value(&value), version);
    }

    fn done_put(&mut self, key: u16, version: u64) -> u32 {
        let tag = self.put(key);
        self.end(tag, Outcome::Done, version);
        tag
    }

    fn restart(&mut self, counts: &[u64], epoch: u64) {
        self.checker.server_stopped(counts);
        self.checker.server_started(epoch);
        self.epoch = epoch;
    }

    /// Ends the story; `counts` is what each shard of the last server counts. Returns the rules that were broken.
    fn rules(mut self, counts: &[u64]) -> Vec<Rule> {
        self.checker.server_stopped(counts);
        self.checker.finish();
        let violations = self.checker.violations();
        assert_eq!(violations.len() as u64, self.checker.violation_count(), "{violations:?}");
        let mut rules: Vec<_> = violations.iter().map(|violation| violation.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }
}

#[test]
fn the_plain_life_of_keys_is_legal() {
    let mut story = Story::new();
    let get = story.get(1);
    story.end(get, Outcome::NotFound, 0);
    let put = story.done_put(1, 1);
    let get = story.get(1);
    story.end_with(get, 1, put, 1);
    let delete = story.delete(1);
    story.end(delete, Outcome::Done, 2);
    let delete = story.delete(1);
    story.end(delete, Outcome::NotFound, 2);
    // The other shard counts for itself.
    story.done_put(11, 1);
    assert_eq!(story.rules(&[2, 1]), []);
}

/// Goal: a counter's adds are one chain, with room for unanswered ones only. Method: what three adds have found, with one
/// unanswered or none; a restart begins anew.
#[test]
fn counters_are_sums() {
    for (found, unanswered, is_legal) in [
        ([0, 5, 12], None, true),
        ([0, 10, 12], None, false), // The first took effect twice.
        ([0, 5, 5], None, false),   // The second was lost.
        ([0, 5, 12 + 3], Some(3), true),
        ([3, 5 + 3, 12 + 3], Some(3), true),
        ([3, 5 + 3, 12 + 6], Some(3), false),
    ] {
        let mut story = Story::new();
        if let Some(delta) = unanswered {
            let lost = story.call(1, 1, Ask::Add { delta });
            story.end(lost, Outcome::OutcomeUnknown, 0);
        }
        for ((former, delta), version) in found.into_iter().zip([5, 7, 1]).zip(2..) {
            let add = story.call(1, 1, Ask::Add { delta });
            story.end(add, Outcome::Value(&u64::to_be_bytes(former)), version);
        }
        // One more write, of another key, so that the books are right.
        let put = story.put(2);
        story.end(put, Outcome::OutcomeUnknown, 0);
        let rules = story.rules(&[4, 0]);
        assert_eq!(rules, if is_legal { vec![] } else { vec![Rule::Counter] }, "{found:?}, {unanswered:?}");
    }
    let mut story = Story::new();
    for epoch in [NEXT_EPOCH, 9] {
        let add = story.call(1, 1, Ask::Add { delta: 5 });
        story.end(add, Outcome::Value(&u64::to_be_bytes(0)), 1);
        story.restart(&[1, 0], epoch);
    }
    assert_eq!(story.rules(&[0, 0]), []);
}

/// Goal: a write on a condition follows upon what it names. Method: each condition after a put, and after a delete.
#[test]
fn conditions_are_judged_by_what_was_before() {
    use Condition::{Absent, Present, Version};
    for (condition, deleted, is_legal) in [
        (Absent, false, false),
        (Absent, true, true),
        (Present, false, true),
        (Present, true, false),
        (Version(2), false, true),
        (Version(1), false, false),
        (Version(2), true, false),
        (Version(9), false, false),
    ] {
        let mut story = Story::new();
        story.done_put(1, 1);
        if deleted {
            let delete = story.delete(1);
            story.end(delete, Outcome::Done, 2);
        } else {
            story.done_put(1, 2);
        }
        let put = story.call(2, 1, Ask::PutOn { len: LEN, condition });
        story.end(put, Outcome::Done, 3);
        let rules = story.rules(&[3, 0]);
        let expected = if is_legal { vec![] } else { vec![Rule::Condition] };
        assert_eq!(rules, expected, "{condition:?}, deleted: {deleted}");
    }
}

/// Goal: refusals are no older than what was known, and of the kind that was asked for. Method: one of each.
#[test]
fn refusals_are_judged_like_reads() {
    let refused = |condition, outcome, version| {
        let mut story = Story::new();
        story.done_put(1, 1);
        story.done_put(1, 2);
        let put = story.call(2, 1, Ask::PutOn { len: LEN, condition });
        story.end(put, outcome, version);
        story.rules(&[2, 0])
    };
    let (exists, changed) = (Outcome::NotExecuted(Reason::Exists), Outcome::NotExecuted(Reason::Changed));
    assert_eq!(refused(Condition::Absent, exists, 2), []);
    assert_eq!(refused(Condition::Version(1), changed, 2), []);
    assert_eq!(refused(Condition::Absent, exists, 1), [Rule::Version]);
    assert_eq!(refused(Condition::Version(1), changed, 0), [Rule::Version]);
    assert_eq!(refused(Condition::Absent, changed, 2), [Rule::Kind]);
    assert_eq!(refused(Condition::Present, exists, 2), [Rule::Kind]);
    assert_eq!(refused(Condition::Absent, Outcome::NotFound, 2), [Rule::Kind]);
}

/// Concurrent operations may take effect in any order, unanswered ones late or never.
#[test]
fn what_is_merely_unusual_is_legal() {
    let mut story = Story::new();
    let (first, second, lost, never) = (story.put(1), story.put(1), story.put(1), story.put(1));
    story.end(second, Outcome::Done, 1);
    let get = story.get(1);
    story.end(first, Outcome::Done, 2);
    story.end_with(get, 1, second, 1);
    story.end(lost, Outcome::OutcomeUnknown, 0);
    story.end(never, Outcome::NotExecuted(Reason::Deadline), 0);
    let get = story.get(1);
    story.end_with(get, 1, first, 2);
    let get = story.get(1);
    story.end_with(get, 1, lost, 3);
    // Another unanswered one takes effect and is never seen, and one more never does.
    for _ in 0..2 {
        let lost = story.put(2);
        story.end(lost, Outcome::OutcomeUnknown, 0);
    }
    let delete = story.delete(2);
    story.checker.client_stopped(3);
    assert!(delete > 0);
    assert_eq!(story.rules(&[4, 0]), []);
}

#[test]
fn a_restart_loses_everything_legally() {
    let mut story = Story::new();
    story.done_put(1, 1);
    let (spans, late) = (story.get(1), story.put(1));
    story.restart(&[1, 0], NEXT_EPOCH);
    let get = story.get(1);
    story.end(get, Outcome::NotFound, 0);
    story.done_put(1, 1);
    // The answer to a question of the former life was still on the way.
    story.epoch = EPOCH;
    story.end_with(spans, 1, 0, 1);
    story.epoch = NEXT_EPOCH;
    story.end(late, Outcome::OutcomeUnknown, 0);
    assert_eq!(story.rules(&[1, 0]), []);
}

#[test]
fn stale_reads_are_flagged() {
    let mut story = Story::new();
    let old = story.done_put(1, 1);
    story.done_put(1, 2);
    let get = story.get(1);
    story.end_with(get, 1, old, 1);
    assert_eq!(story.rules(&[2, 0]), [Rule::Version, Rule::BlackBox]);
}

/// A liar about versions is still caught by the black box.
#[test]
fn a_stale_read_under_a_new_version_is_flagged() {
    let mut story = Story::new();
    let old = story.done_put(1, 1);
    story.done_put(1, 2);
    let get = story.get(1);
    story.end_with(get, 1, old, 3);
    assert_eq!(story.rules(&[3, 0]), [Rule::Once, Rule::BlackBox, Rule::Books]);
}

#[test]
fn lost_writes_are_flagged() {
    let mut story = Story::new();
    story.done_put(1, 1);
    let get = story.get(1);
    story.end(get, Outcome::NotFound, 1);
    assert_eq!(story.rules(&[1, 0]), [Rule::BlackBox]);

    let mut story = Story::new();
    story.done_put(1, 1);
    assert_eq!(story.rules(&[0, 0]), [Rule::Books], "acknowledged and not counted");
}

#[test]
fn duplicated_writes_are_flagged() {
    let mut story = Story::new();
    story.done_put(1, 1);
    assert_eq!(story.rules(&[2, 0]), [Rule::Books], "counted twice");

    let mut story = Story::new();
    let put = story.done_put(1, 1);
    let get = story.get(1);
    story.end_with(get, 1, put, 2);
    assert_eq!(story.rules(&[2, 0]), [Rule::Once, Rule::Books], "seen at two versions");
}

#[test]
fn a_version_given_twice_is_flagged() {
    let mut story = Story::new();
    let (first, second) = (story.put(1), story.put(2));
    story.end(first, Outcome::Done, 1);
    story.end(second, Outcome::Done, 1);
    assert_eq!(story.rules(&[2, 0]), [Rule::Once]);
}

#[test]
fn a_version_out_of_order_is_flagged() {
    let mut story = Story::new();
    story.done_put(1, 5);
    story.done_put(2, 4);
    assert_eq!(story.rules(&[2, 0]), [Rule::Version, Rule::Books]);

    let mut story = Story::new();
    story.done_put(1, 1);
    let get = story.get(2);
    story.end(get, Outcome::NotFound, 0);
    assert_eq!(story.rules(&[1, 0]), [Rule::Version], "absence as of before a write that had ended");

    let mut story = Story::new();
    story.done_put(1, 0);
    assert_eq!(story.rules(&[1, 0]), [Rule::Version], "no version at all");
}

#[test]
fn values_of_nobody_are_flagged() {
    let mut story = Story::new();
    let put = story.done_put(1, 1);
    let (get, get_other, get_torn, get_early) = (story.get(1), story.get(2), story.get(1), story.get(1));
    story.end(get, Outcome::Value(b"a value that carries no writer"), 1);
    story.end_with(get_other, 1, put, 1);
    let mut value = Vec::new();
    write_value(&mut value, Origin { key: 1, writer: 2, tag: put }, LEN);
    value[20] ^= 1;
    story.end(get_torn, Outcome::Value(&value), 1);
    story.end_with(get_early, 1, put + 100, 1);
    assert_eq!(story.checker.violation_count(), 4);
    assert_eq!(story.rules(&[1, 0]), [Rule::Value]);
}

#[test]
fn values_of_another_length_or_writer_are_flagged() {
    let mut story = Story::new();
    let put = story.done_put(1, 1);
    for origin in [Origin { key: 1, writer: 2, tag: put }, Origin { key: 1, writer: 9, tag: put }] {
        let mut value = Vec::new();
        write_value(&mut value, origin, if origin.writer == 2 { LEN + 1 } else { LEN });
        let get = story.get(1);
        story.end(get, Outcome::Value(&value), 1);
    }
    assert_eq!(story.checker.violation_count(), 2);
    assert_eq!(story.rules(&[1, 0]), [Rule::Value]);
}

#[test]
fn what_was_not_executed_has_no_effect() {
    let mut story = Story::new();
    let put = story.put(1);
    story.end(put, Outcome::NotExecuted(Reason::Deadline), 0);
    let get = story.get(1);
    story.end_with(get, 1, put, 1);
    assert_eq!(story.rules(&[1, 0]), [Rule::NotExecuted]);

    let mut story = Story::new();
    let (put, get) = (story.put(1), story.get(1));
    story.end_with(get, 1, put, 1);
    story.end(put, Outcome::NotExecuted(Reason::SessionLost), 0);
    assert_eq!(story.rules(&[1, 0]), [Rule::NotExecuted], "seen before it ended");

    let mut story = Story::new();
    let put = story.put(1);
    story.end(put, Outcome::NotExecuted(Reason::NoSpace), 0);
    assert_eq!(story.rules(&[1, 0]), [Rule::Books], "executed all the same, and never seen");
}

#[test]
fn ends_that_do_not_fit_are_flagged() {
    let mut story = Story::new();
    let (put, get) = (story.put(1), story.get(1));
    story.end(put, Outcome::NotFound, 0);
    story.end(get, Outcome::OutcomeUnknown, 0);
    assert_eq!(story.checker.violation_count(), 2);
    assert_eq!(story.rules(&[0, 0]), [Rule::Kind]);

    let mut story = Story::new();
    let put = story.done_put(1, 1);
    story.end(put, Outcome::Done, 1);
    story.end(77, Outcome::Done, 1);
    assert_eq!(story.checker.violation_count(), 2);
    assert_eq!(story.rules(&[1, 0]), [Rule::Ends]);

    let mut story = Story::new();
    story.put(1);
    assert_eq!(story.checker.open_count(), 1, "what never ends can be asked for");
}

#[test]
fn values_do_not_survive_a_restart() {
    let mut story = Story::new();
    let put = story.done_put(1, 1);
    story.restart(&[1, 0], NEXT_EPOCH);
    let get = story.get(1);
    story.end_with(get, 1, put, 1);
    assert_eq!(story.rules(&[1, 0]), [Rule::Once, Rule::Books]);

    let mut story = Story::new();
    let put = story.put(1);
    story.end(put, Outcome::OutcomeUnknown, 0);
    story.restart(&[0, 0], NEXT_EPOCH);
    let get = story.get(1);
    story.end_with(get, 1, put, 1);
    assert_eq!(story.rules(&[1, 0]), [Rule::Once], "it had ended before this server began");
}

#[test]
fn the_dead_do_not_answer_new_questions() {
    let mut story = Story::new();
    let put = story.done_put(1, 1);
    story.restart(&[1, 0], NEXT_EPOCH);
    let get = story.get(1);
    story.epoch = EPOCH;
    story.end_with(get, 1, put, 1);
    story.epoch = 0xbad;
    let get = story.get(1);
    story.end(get, Outcome::NotFound, 0);
    assert_eq!(story.checker.violation_count(), 2);
    assert_eq!(story.rules(&[0, 0]), [Rule::Epoch]);

    // After an answer of the new server, one of the old server is also of an older version.
    let mut story = Story::new();
    let put = story.done_put(1, 9);
    story.restart(&[9, 0], NEXT_EPOCH);
    let get = story.get(1);
    story.end(get, Outcome::NotFound, 0);
    let get = story.get(1);
    story.epoch = EPOCH;
    story.end_with(get, 1, put, 9);
    assert!(story.rules(&[0, 0]).contains(&Rule::Version));
}

/// Goal: the black box accuses no history that has an explanation, and without deletes misses none that has not. Method:
/// small histories of a register that sometimes lies, against a search through all orders.
#[test]
fn the_black_box_agrees_with_a_search_through_all_orders() {
    const SEED: u64 = 11;
    println!("seed {SEED}");
    let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let (mut legal, mut found, mut missed) = (0, 0, 0);
    for _ in 0..60_000 {
        let history = random_history(&mut random);
        let verdict = register::check(&history);
        let has_deletes =
            history.iter().any(|(_, access)| matches!(access, Access::Removed | Access::MayRemove));
        match (has_explanation(&history), verdict) {
            (true, verdict) => {
                assert_eq!(verdict, Ok(()), "{history:?}");
                legal += 1;
            }
            (false, Err(_)) => found += 1,
            (false, Ok(())) => {
                assert!(has_deletes, "{history:?}");
                missed += 1;
            }
        }
    }
    println!("{legal} legal, {found} found, {missed} missed");
    assert!(legal > 10_000 && found > 10_000 && missed * 10 < found, "{legal} {found} {missed}");
}

/// Up to eight accesses to a register, each taking effect somewhere between its start and its end; some reads lie.
fn random_history(random: &mut Xoshiro256PlusPlus) -> Vec<(Span, Access)> {
    let count = random.random_range(3..=8);
    let lies = random.random_bool(0.8);
    let with_deletes = random.random_bool(0.6);
    // Effects a hundred apart, starts and ends up to as much around them; the last digit makes all times different.
    let unit = |random: &mut Xoshiro256PlusPlus| 10 * random.random_range(1..12);
    let accesses: Vec<(u64, u64)> = (0..count)
        .map(|index| {
            let effect = 1_000 + 100 * index;
            (effect - unit(random) + index, effect + unit(random) + index)
        })
        .collect();
    let mut history = Vec::new();
    let (mut state, mut written) = (None, 0);
    for (start, end) in accesses {
        let choice = random.random_range(0..if with_deletes { 9 } else { 6 });
        let seen = if lies && random.random_bool(0.5) {
            (written > 0 && random.random_bool(0.7)).then(|| random.random_range(1..=written))
        } else {
            state
        };
        let is_answered = random.random_bool(0.9);
        let (access, is_answered) = match choice {
            0 | 1 => {
                written += 1;
                state = Some(written);
                (Access::Write(written), is_answered)
            }
            6 | 7 if seen.is_some() => {
                state = None;
                if is_answered { (Access::Removed, true) } else { (Access::MayRemove, false) }
            }
            _ => (seen.map_or(Access::Absent, Access::Read), true),
        };
        history.push((Span { start, end: if is_answered { end } else { u64::MAX } }, access));
    }
    // A write that nobody answered or read is only known to be possible.
    let reads: Vec<_> = history.iter().map(|&(_, access)| access).collect();
    for (span, access) in &mut history {
        if let Access::Write(value) = *access
            && span.end == u64::MAX
            && !reads.contains(&Access::Read(value))
        {
            *access = Access::MayWrite;
        }
    }
    history
}

/// Whether some order explains all: tries each access next that no other must come before.
fn has_explanation(history: &[(Span, Access)]) -> bool {
    fn search(history: &[(Span, Access)], left: u32, state: Option<u64>) -> bool {
        let indices = || (0..history.len()).filter(|index| left >> index & 1 == 1);
        let is_optional = |access| matches!(access, Access::MayRemove | Access::MayWrite);
        if indices().all(|index| is_optional(history[index].1)) {
            return true; // What only may have happened, has not.
        }
        let first_end = indices().map(|index| history[index].0.end).min().unwrap_or(u64::MAX);
        indices().filter(|&index| history[index].0.start < first_end).any(|index| {
            let next = match history[index].1 {
                Access::Write(value) => Some(value),
                Access::MayWrite => Some(u64::MAX),
                Access::Read(value) if state == Some(value) => state,
                Access::Absent if state.is_none() => None,
                Access::Removed if state.is_some() => None,
                Access::MayRemove => None,
                _ => return false,
            };
            search(history, left & !(1 << index), next)
        })
    }
    search(history, (1 << history.len()) - 1, None)
}
