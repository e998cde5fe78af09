//! What is typed on the command line.

use std::{convert::Infallible, ops::Range, path::PathBuf, str::FromStr};

use clap::Parser;
use linerate_proto::mutants::Mutant;
use linerate_sim::run::OPS_DEFAULT;

/// Runs production clients and servers on a simulated network that does its worst, and judges every answer.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Options {
    /// Seeds to run: from A up to, not including, B
    #[arg(long, value_name = "A..B", default_value = "0..200", value_parser = seed_range, conflicts_with = "seed")]
    pub(crate) seeds: Range<u64>,
    /// One seed to run alone
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Print everything that happens in the seed
    #[arg(long, requires = "seed", conflicts_with = "json")]
    pub(crate) trace: bool,
    /// Prove that the simulator can say no: run seeds against each deliberate fault until one finds it (needs a build with
    /// --features mutants)
    #[arg(long, conflicts_with_all = ["seeds", "seed"])]
    pub(crate) mutants: bool,
    /// One deliberate fault to run the seeds with (needs a build with --features mutants)
    #[arg(long, value_name = "NAME", conflicts_with = "mutants")]
    pub(crate) mutant: Option<Mutant>,
    /// Operations of each seed at least, 1 to 1000000
    #[arg(long, default_value_t = OPS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) ops: u32,
    /// Threads, 1 to 1024; as many as there are cores unless given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    pub(crate) threads: Option<u16>,
    /// Write the result as JSON to this file, - for standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<JsonTarget>,
}

/// Where JSON goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JsonTarget {
    /// Standard output.
    Stdout,
    /// A file, which is replaced.
    File(PathBuf),
}

impl FromStr for JsonTarget {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::Stdout } else { Self::File(text.into()) })
    }
}

impl Options {
    /// The seeds to run, however they were given.
    pub(crate) fn range(&self) -> Range<u64> {
        self.seed.map_or_else(|| self.seeds.clone(), |seed| seed..seed + 1)
    }
}

fn seed_range(text: &str) -> Result<Range<u64>, String> {
    let range = text.split_once("..").and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    let range = range.filter(|range: &Range<u64>| range.start < range.end);
    range.ok_or_else(|| {
        format!("give two numbers from 0 to {}, the first below the second, like 0..2000", u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_seeds() {
        assert_eq!(seed_range("3..10"), Ok(3..10));
        for wrong in ["", "..", "3", "3..", "..3", "3..3", "4..3", "-1..3", "a..b", "1..2..3"] {
            assert!(seed_range(wrong).unwrap_err().contains("0..2000"), "{wrong}");
        }
    }
}
