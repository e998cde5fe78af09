//! What commands that run many times have in common: the options of a run as they were typed, what makes a result wrong,
//! and how they tell how far they are.

use std::{sync::atomic::AtomicBool, time::Duration};

use clap::{ArgMatches, Args, Command, FromArgMatches, error::ErrorKind, parser::ValueSource};
use indicatif::ProgressBar;

use crate::{
    options::RunOptions,
    output::Report,
    run::{Drawn, run_with},
};

/// Options that say where a result goes, not how it is measured.
const PLACES: [&str; 3] = ["json", "keep", "results"];

/// The options of `linerate-bench run`, and which of them were typed.
#[derive(Clone, Debug)]
pub struct TypedRun {
    /// The options with their defaults.
    pub options: RunOptions,
    /// Those that were typed, as `--name=value` or `--name`, in the order of their declaration; without those that say where
    /// a result goes.
    words: Vec<String>,
}

impl TypedRun {
    /// The options with others beside those that were typed.
    ///
    /// # Errors
    /// A sentence that names what is wrong, or an option that was typed and is among the others.
    pub(crate) fn with(&self, others: &[String]) -> anyhow::Result<RunOptions> {
        for other in others {
            let name = name_of(other);
            anyhow::ensure!(
                !self.is_typed(name),
                "--{name} is given twice: once for all runs, once for each"
            );
        }
        RunOptions::of_arguments(&[&self.words[..], others].concat())
    }

    /// Whether the option of this long name was typed.
    pub(crate) fn is_typed(&self, name: &str) -> bool {
        self.words.iter().any(|word| name_of(word) == name)
    }

    /// What was typed.
    pub(crate) fn words(&self) -> &[String] {
        &self.words
    }

    /// Refuses options that have no meaning in a command that runs many times.
    pub(crate) fn refuse(&self, names: &[&str], reason: &str) -> anyhow::Result<()> {
        match names.iter().find(|name| self.is_typed(name)) {
            Some(name) => anyhow::bail!("--{name} cannot be given here: {reason}"),
            None => Ok(()),
        }
    }
}

impl FromArgMatches for TypedRun {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut words = Vec::new();
        for argument in RunOptions::augment_args(Command::new("run")).get_arguments() {
            let (id, Some(name)) = (argument.get_id().as_str(), argument.get_long()) else { continue };
            if PLACES.contains(&name) || matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            if !argument.get_action().takes_values() {
                words.push(format!("--{name}"));
                continue;
            }
            for value in matches.get_raw(id).into_iter().flatten() {
                let value = value.to_str().ok_or_else(|| clap::Error::new(ErrorKind::InvalidUtf8))?;
                words.push(format!("--{name}={value}"));
            }
        }
        Ok(Self { options: RunOptions::from_arg_matches(matches)?, words })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for TypedRun {
    fn augment_args(command: Command) -> Command {
        RunOptions::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        RunOptions::augment_args_for_update(command)
    }
}

/// `--name=value`, or what a flag of that name takes: nothing when it is not set.
///
/// # Errors
/// A sentence when there is no such option, or a flag is to be something else than true or false.
pub(crate) fn word(name: &str, value: &str) -> anyhow::Result<Option<String>> {
    let names = RunOptions::names();
    let known = names.iter().filter(|(known, _)| !PLACES.contains(&known.as_str()));
    let Some((_, takes_value)) = known.clone().find(|(known, _)| known == name) else {
        let known: Vec<_> = known.map(|(name, _)| name.as_str()).collect();
        anyhow::bail!("`{name}` is no option of a run: give one of {}", known.join(", "));
    };
    match (takes_value, value) {
        (true, _) => Ok(Some(format!("--{name}={value}"))),
        (false, "true") => Ok(Some(format!("--{name}"))),
        (false, "false") => Ok(None),
        (false, _) => anyhow::bail!("{name}={value} is not allowed: give true or false"),
    }
}

/// The long name in `--name=value`.
pub(crate) fn name_of(word: &str) -> &str {
    let word = word.trim_start_matches("--");
    word.split_once('=').map_or(word, |(name, _)| name)
}

/// Measures once, for as long as was asked for.
///
/// # Errors
/// A sentence that names what went wrong, also when it did so only in the end.
pub(crate) fn run_whole(
    options: &RunOptions,
    stop: &AtomicBool,
    drawn: &mut Drawn,
) -> anyhow::Result<Report> {
    whole(run_with(options, stop, drawn, None)?)
}

/// A report of all that was to be measured: part of it cannot be compared with others.
pub(crate) fn whole(report: Report) -> anyhow::Result<Report> {
    match report.failure {
        Some(failure) => anyhow::bail!(failure),
        None => Ok(report),
    }
}

/// What is wrong with answers, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// No linearizable store can have answered so.
    Violated(String),
    /// Values that were never put.
    Values(String),
}

impl Wrong {
    /// What is wrong with the answers of a `system`, whatever its speed: how often they were not linearizable, what was found
    /// the first time (the operations around it, behind a semicolon, are for the JSON), and how many values were wrong.
    #[must_use]
    pub fn of(system: &str, violations: u64, first: Option<&str>, wrong_values: Option<u64>) -> Option<Self> {
        if violations > 0 {
            let first = first.and_then(|text| text.split(';').next()).unwrap_or("unknown");
            return Some(Self::Violated(format!(
                "{violations} times the {system} was not linearizable, which is a bug; the first time: {first}"
            )));
        }
        let wrong = wrong_values.filter(|&wrong| wrong > 0)?;
        let text = format!("{wrong} values were never put at the key they were got from: this is a bug");
        Some(Self::Values(text))
    }

    /// What is wrong with the answers of a run.
    #[must_use]
    pub fn of_run(report: &Report) -> Option<Self> {
        let (violations, first) = match &report.check {
            Some(check) => (check.violations, check.first_violation.as_deref()),
            None => (0, None),
        };
        Self::of("store", violations, first, report.wrong_values)
    }
}

/// What is wrong with the answers of a run, as a sentence.
pub(crate) fn wrong(report: &Report) -> Option<String> {
    Wrong::of_run(report).map(|wrong| match wrong {
        Wrong::Violated(text) | Wrong::Values(text) => text,
    })
}

/// Tells how far a command is, on standard error if that is a terminal. The bars of the run that follows come below.
pub(crate) fn tell(text: impl AsRef<str>) {
    let bar = ProgressBar::new(1);
    bar.println(text);
    bar.finish_and_clear();
}

/// A time to come, for people.
pub(crate) fn about(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("about {} s left", seconds.max(1)),
        seconds @ 120..7_200 => format!("about {} min left", seconds.div_ceil(60)),
        seconds => format!("about {} h left", seconds.div_ceil(3_600)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;
    use crate::{check::CheckReport, output::tests::report};

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        run: TypedRun,
    }

    /// What was typed.
    pub(crate) fn typed(words: &str) -> TypedRun {
        Typed::try_parse_from(["x"].into_iter().chain(words.split_whitespace())).unwrap().run
    }

    /// Goal: what was typed is known, and nothing else. Method: values, flags, defaults that were typed, and places.
    #[test]
    fn what_was_typed_is_known() {
        let run = typed("--keep x --verify --batch 110 --json - --records=5");
        assert_eq!(run.words(), ["--records=5", "--batch=110", "--verify"]);
        assert_eq!((run.options.records, run.options.place.keep.as_deref()), (5, Some("x")));
        let other = run.with(&["--seed=9".to_owned()]).unwrap();
        assert_eq!((other.records, other.seed, other.verify, other.place.keep), (5, 9, true, None));
        let twice = run.with(&["--batch=3".to_owned()]).unwrap_err().to_string();
        assert!(twice.starts_with("--batch is given twice"), "{twice}");
        assert!(typed("").words().is_empty());
        let refused = run.refuse(&["seed", "verify"], "because").unwrap_err().to_string();
        assert_eq!(refused, "--verify cannot be given here: because");
        assert!(run.refuse(&["seed"], "because").is_ok());
    }

    /// Goal: settings become what is typed. Method: a value, flags, and mistakes.
    #[test]
    fn settings_become_words() {
        assert_eq!(word("batch", "7").unwrap().as_deref(), Some("--batch=7"));
        assert_eq!(word("verify", "true").unwrap().as_deref(), Some("--verify"));
        assert_eq!(word("verify", "false").unwrap(), None);
        for (name, value, expected) in [
            ("verify", "yes", "verify=yes is not allowed: give true or false"),
            ("keep", "x", "`keep` is no option of a run: give one of target, "),
            ("speed", "1", "`speed` is no option of a run: give one of target, "),
        ] {
            let error = word(name, value).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    /// Goal: a wrong answer is never overlooked. Method: reports with none, with wrong values, and with violations.
    #[test]
    fn wrong_answers_are_told() {
        assert_eq!(wrong(&report()), None);
        let values = Report { wrong_values: Some(3), ..report() };
        assert!(wrong(&values).unwrap().starts_with("3 values were never put"));
        let first_violation = Some("a stale read; around it".to_owned());
        let check = Some(CheckReport { violations: 2, first_violation, ..CheckReport::default() });
        let violated = wrong(&Report { check, ..report() }).unwrap();
        assert!(violated.ends_with("the first time: a stale read"), "{violated}");
    }

    #[test]
    fn times_are_told_roughly() {
        for (seconds, expected) in [
            (0, "about 1 s left"),
            (40, "about 40 s left"),
            (130, "about 3 min left"),
            (9_000, "about 3 h left"),
        ] {
            assert_eq!(about(Duration::from_secs(seconds)), expected);
        }
    }
}
