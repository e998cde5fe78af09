//! Programs that this one starts, and that end when it does, however that ends.

use std::{
    ffi::OsStr,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::Context;
use clap::Args;
use linerate_dataplane::pin::pin_to_core;
use nix::{
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::{Pid, getppid},
};

/// A program to run in place of this one.
#[derive(Clone, Debug, Args)]
pub struct ExecOptions {
    /// Process whose end ends the program
    #[arg(long)]
    pub parent: i32,
    /// CPU that all its threads stay on [default: those of the parent]
    #[arg(long)]
    pub cpu: Option<usize>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Becomes another program, which the kernel kills when the thread that started this process ends: a server does not
/// outlive whoever needed it, however that ends.
///
/// # Errors
/// When the program cannot be run.
pub fn exec(options: &ExecOptions) -> anyhow::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    anyhow::ensure!(
        getppid() == Pid::from_raw(options.parent),
        "the process that started this one has ended already"
    );
    if let Some(cpu) = options.cpu {
        pin_to_core(cpu)?;
    }
    let [program, arguments @ ..] = &options.command[..] else { anyhow::bail!("no program") };
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("cannot run {program}"))
}

/// A command that becomes `program` on `cpu`, if that is chosen, in a process group of its own and without an input. The
/// arguments that are added are the program's. The thread that starts it must live as long as the program is needed.
pub(crate) fn command(program: impl AsRef<OsStr>, cpu: Option<usize>) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["cluster", "exec", "--parent", &std::process::id().to_string()]);
    if let Some(cpu) = cpu {
        command.args(["--cpu", &cpu.to_string()]);
    }
    command.arg("--").arg(program).stdin(Stdio::null()).process_group(0);
    command
}
