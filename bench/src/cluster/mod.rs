//! Many nodes: servers and clients on hosts, in network namespaces or on loopback, measured together.
//!
//! The coordinator ([`cluster_run`]) starts a node process everywhere and speaks with it through a pipe (`message`), be that
//! one of this machine or of ssh. A node starts a server, or is a client itself by the same code as `linerate-bench run`;
//! all clients begin at one agreed instant, told to each in its own clock. A node whose pipe ends stops what it runs: whatever
//! becomes of the coordinator, nothing goes on without it. What does not end so is ended by its PID file (`pidfile`).

mod coordinator;
mod ground;
mod hosts;
mod message;
mod node;
mod pidfile;
mod presets;
mod report;
mod sample;
mod spec;
mod ssh;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

pub use self::{
    coordinator::cluster_run,
    node::{NodeOptions, node},
    report::{ClusterReport, ClusterResult, cluster_table},
    spec::{ClusterRunOptions, Launcher},
};
pub use crate::program::{ExecOptions, exec};

/// What to do with a cluster.
#[derive(Clone, Debug, Subcommand)]
pub enum ClusterCommand {
    /// Measure: start servers and clients, have them begin together, collect everything, and leave nothing behind
    Run(Box<ClusterRunOptions>),
    /// Be one node of a run, by orders from standard input (what `run` starts on each host)
    #[command(hide = true)]
    Node(NodeOptions),
    /// End what a run that was broken off has left, by the PID files in its folder
    #[command(hide = true)]
    Reap(ReapOptions),
    /// Become another program that ends with the process that started it
    #[command(hide = true)]
    Exec(ExecOptions),
}

/// Where the PID files are.
#[derive(Clone, Debug, Args)]
pub struct ReapOptions {
    /// Folder of a run, on the machine that it ran on
    pub folder: PathBuf,
}

/// Ends what the PID files in a folder speak of.
///
/// # Errors
/// When something is still there.
pub fn reap(options: &ReapOptions) -> anyhow::Result<()> {
    let left = pidfile::reap(&options.folder, Duration::from_secs(2));
    anyhow::ensure!(left.is_empty(), "still there: the processes of {left:?}");
    Ok(())
}
