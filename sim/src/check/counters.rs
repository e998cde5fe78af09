//! Whether counters are the sums of what was added to them: an add that takes effect twice shows in what the next one finds.

use std::collections::BTreeMap;

use super::{Ask, Checker, Rule, State};

impl Checker {
    /// Each counter's acknowledged adds in the order of their versions: each finds the sum of those before, and beyond that no
    /// more than unanswered ones can have added.
    pub(super) fn check_counters(&mut self) {
        // By counter and incarnation: version, number found and added of each.
        let mut adds: BTreeMap<(u16, u32), BTreeMap<u64, (u64, u64)>> = BTreeMap::new();
        for record in &self.records {
            if let (State::Result { incarnation, former, .. }, Ask::Add { delta }) =
                (record.state, record.call.ask)
                && let Some(effect) = record.effect
            {
                let counter = adds.entry((record.call.key, incarnation)).or_default();
                counter.insert(effect.version, (former, delta));
            }
        }
        let mut wrong = Vec::new();
        for ((key, incarnation), adds) in adds {
            let life = self.lives[incarnation as usize - 1];
            let unanswered = self.records.iter().filter_map(|record| match record.call.ask {
                Ask::Add { delta } if record.call.key == key => {
                    let is_unknown = matches!(record.state, State::Unknown | State::Open);
                    (is_unknown && record.start < life.end && record.end > life.start).then_some(delta)
                }
                _ => None,
            });
            let most: u64 = unanswered.sum();
            let (mut sum, mut unexplained) = (0, 0);
            for (version, (former, delta)) in adds {
                let more = former.checked_sub(sum);
                unexplained += more.unwrap_or(0);
                if more.is_none() || unexplained > most {
                    wrong.push(format!(
                        "counter {key} of server {incarnation} was {former} at version {version}, but {sum} was added \
                         before, and {unexplained} of {most} that were not answered"
                    ));
                    break;
                }
                sum = former + delta;
            }
        }
        for what in wrong {
            self.violate(Rule::Counter, what);
        }
    }
}
