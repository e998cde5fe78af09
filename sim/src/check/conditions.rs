//! Whether writes on conditions took effect only where these were met, by the order that versions claim.

use std::collections::{BTreeMap, HashSet};

use linerate_client::Condition;

use super::{Ask, Checker, Rule, Stamp, State};

impl Checker {
    /// Each effective write on a condition, against the write of its key that is known to come before it. Writes of unknown
    /// outcome may have come between: they make nothing wrong that could be right.
    pub(super) fn check_conditions(&mut self) {
        let mut effects: BTreeMap<(u16, Stamp), Ask> = BTreeMap::new();
        let mut may_vanish = HashSet::new();
        for record in &self.records {
            if let Some(effect) = record.effect {
                effects.insert((record.call.key, effect), record.call.ask);
            }
            if record.call.ask == Ask::Delete && matches!(record.state, State::Unknown | State::Open) {
                may_vanish.insert(record.call.key);
            }
        }
        let mut wrong = Vec::new();
        for (&(key, at), &ask) in &effects {
            let Ask::PutOn { condition, .. } = ask else { continue };
            let first = Stamp { version: 0, ..at };
            let before = effects.range((key, first)..(key, at)).next_back();
            let before = before.map(|(&(_, stamp), &ask)| (stamp.version, ask));
            let is_wrong = match (condition, before) {
                (Condition::Absent, Some((_, ask))) => ask != Ask::Delete && !may_vanish.contains(&key),
                (Condition::Present, Some((_, ask))) => {
                    // Something unknown may have come between, for which there would be a version.
                    ask == Ask::Delete && before.is_some_and(|(version, _)| version + 1 == at.version)
                }
                (Condition::Version(wanted), Some((version, ask))) => {
                    version > wanted || (version == wanted && ask == Ask::Delete) || wanted >= at.version
                }
                (Condition::Version(wanted), None) => wanted >= at.version,
                (Condition::Always | Condition::Absent | Condition::Present, _) => false,
            };
            if is_wrong {
                wrong.push(format!("key {key}: {ask:?} took effect at {at:?}, upon {before:?}"));
            }
        }
        for what in wrong {
            self.violate(Rule::Condition, what);
        }
    }
}
