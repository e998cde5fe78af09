//! `linerate`: one operation from the command line, and a look at servers and their cluster.

#![forbid(unsafe_code)]

mod cluster;

use std::{
    io::{self, IsTerminal, Read, Write},
    net::SocketAddr,
    num::NonZeroU32,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use cluster::ClusterCommand;
use jiff::SignedDuration;
use linerate_client::{Added, Client, Condition, SessionConfig, Terms, Written, contact_points};
use linerate_dataplane::{
    Port, privilege,
    transport::{self, Transport, Wanted},
};
use linerate_proto::wire::{STAT_NAMES, VALUE_LEN_MAX};

/// Talks to linerate servers. Exit codes: 0 found or done, 1 not found, condition not met or servers that disagree, 2 error.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// A server, or several of one cluster, as host:port,… with the first port of each; or the file of a cluster map
    #[arg(long, short, visible_alias = "cluster", default_value = "127.0.0.1:4100", global = true)]
    servers: String,
    /// What to speak: udp, tcp, packet (AF_PACKET rings), xdp (AF_XDP rings) or auto (the best of udp, packet and xdp)
    #[arg(long, default_value = "udp", global = true)]
    transport: Wanted,
    /// Milliseconds after which to give up, 1 to 600000
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=600_000), global = true)]
    timeout_ms: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints the value of a key
    Get {
        /// 1 to 255 bytes
        key: String,
        /// Tell its version and the time that it has left to live, too, on standard error
        #[arg(long)]
        meta: bool,
    },
    /// Stores a value at a key
    Put {
        /// 1 to 255 bytes
        key: String,
        /// Value; - reads it from standard input
        value: String,
        /// Time to live, such as 500ms, 5s or 2h, 1 ms to 49 days; without it, the value stays
        #[arg(long, value_parser = ttl_ms)]
        ttl: Option<NonZeroU32>,
        /// Store it only if the key has no value
        #[arg(long, group = "condition")]
        if_absent: bool,
        /// Store it only if the key has a value
        #[arg(long, group = "condition")]
        if_present: bool,
        /// Store it only if the key's value has this version, 1 or above, which `get --meta` tells
        #[arg(long, group = "condition", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        if_version: Option<u64>,
    },
    /// Adds to the number at a key, and prints the sum; no value counts as 0
    Add {
        /// 1 to 255 bytes
        key: String,
        /// What to add, -2^63 to 2^63 - 1
        #[arg(allow_negative_numbers = true)]
        delta: i64,
        /// Time to live of a number that begins here, such as 500ms, 5s or 2h, 1 ms to 49 days; without it, it stays
        #[arg(long, value_parser = ttl_ms)]
        ttl: Option<NonZeroU32>,
    },
    /// Removes a key
    Del {
        /// 1 to 255 bytes
        key: String,
    },
    /// Measures round trips to each core
    Ping {
        /// Round trips, 1 to 1000000
        #[arg(long, short, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        count: u32,
    },
    /// Shows a cluster map, and what a change of it would move
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Prints what each core has counted
    Stats {
        /// Print zeros too
        #[arg(long)]
        all: bool,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.command {
        Command::Cluster(command) => {
            cluster::execute(command, &options.servers, options.transport, config(&options))
        }
        _ => contact_points(&options.servers)
            .map_err(anyhow::Error::new)
            .and_then(|servers| run(&options, &servers)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("linerate: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options, servers: &[SocketAddr]) -> anyhow::Result<bool> {
    let transport = match options.transport {
        Wanted::Is(transport) => transport,
        Wanted::Auto => {
            let first = servers.first().context("no server is given")?;
            let (transport, why) = transport::best(transport::local_towards(first.ip())?);
            eprintln!("linerate: chose {transport}: {why}");
            transport
        }
    };
    let (config, command) = (config(options), &options.command);
    match transport {
        Transport::Udp => execute(Client::connect_udp(servers, config)?, command),
        Transport::Packet => execute(Client::connect_packet(servers, config)?, command),
        Transport::Xdp => execute(Client::connect_xdp(servers, config)?, command),
        Transport::Tcp => execute(Client::connect_tcp(servers, config)?, command),
    }
}

/// A time to live in milliseconds.
fn ttl_ms(text: &str) -> Result<NonZeroU32, String> {
    let ttl = text.parse::<SignedDuration>().ok().map(|ttl| ttl.as_millis());
    let ttl_ms = ttl.and_then(|ttl_ms| u32::try_from(ttl_ms).ok()).and_then(NonZeroU32::new);
    ttl_ms.ok_or_else(|| {
        format!("`{text}` is no time to live: give 1ms to {}ms, such as 500ms, 5s or 2h", u32::MAX)
    })
}

fn config(options: &Options) -> SessionConfig {
    SessionConfig {
        // One operation at a time needs few slots; a server's memory for sessions is better kept for others.
        window: 4,
        rto_floor: Duration::from_millis(1),
        timeout: Duration::from_millis(options.timeout_ms),
        ..SessionConfig::default()
    }
}

/// Returns whether what was asked for was found or done.
fn execute<P: Port>(mut client: Client<P>, command: &Command) -> anyhow::Result<bool> {
    // Everything is open.
    privilege::drop_all()?;
    match command {
        Command::Get { key, meta } => {
            let Some(entry) = client.get_entry(key.as_bytes())? else {
                eprintln!("linerate: not found");
                return Ok(false);
            };
            if *meta {
                let left = entry.ttl.map(|ttl| format!("expires in {ttl:?}"));
                let left = left.as_deref().unwrap_or("does not expire");
                eprintln!("linerate: version {}, {left}", entry.version);
            }
            let mut out = io::stdout().lock();
            // Into a file or a pipe goes the value itself, byte by byte.
            let end: &[u8] = if out.is_terminal() { b"\n" } else { b"" };
            out.write_all(&entry.value)
                .and_then(|()| out.write_all(end))
                .context("cannot print the value")?;
            Ok(true)
        }
        Command::Put { key, value, ttl, if_absent, if_present, if_version } => {
            let mut read = Vec::new();
            let value = if value == "-" {
                // One byte more than a value may have is enough to refuse it.
                io::stdin()
                    .lock()
                    .take(VALUE_LEN_MAX as u64 + 1)
                    .read_to_end(&mut read)
                    .context("cannot read the value from standard input")?;
                &read
            } else {
                value.as_bytes()
            };
            let condition = match if_version {
                Some(version) => Condition::Version(*version),
                None if *if_absent => Condition::Absent,
                None if *if_present => Condition::Present,
                None => Condition::Always,
            };
            let written = client.put_with(key.as_bytes(), value, Terms::only_if(condition).for_ms(*ttl))?;
            match written {
                Written::Done { .. } => {}
                Written::NotFound => eprintln!("linerate: not found"),
                Written::Exists { version } => {
                    eprintln!("linerate: not stored: the key has a value already, of version {version}");
                }
                Written::Changed { version } => {
                    eprintln!("linerate: not stored: the value has version {version}");
                }
            }
            Ok(written.is_done())
        }
        Command::Add { key, delta, ttl } => match client.add(key.as_bytes(), *delta, *ttl)? {
            Added::Sum { number, .. } => {
                say(&number.to_string())?;
                Ok(true)
            }
            Added::NotANumber { .. } => anyhow::bail!(linerate_client::Reason::NotANumber),
        },
        Command::Del { key } => {
            let existed = client.delete(key.as_bytes())?;
            if !existed {
                eprintln!("linerate: not found");
            }
            Ok(existed)
        }
        Command::Cluster(_) => unreachable!("it needs no client"),
        Command::Ping { count } => ping(&mut client, *count),
        Command::Stats { all } => stats(&mut client, *all),
    }
}

fn ping<P: Port>(client: &mut Client<P>, count: u32) -> anyhow::Result<bool> {
    let mut times: Vec<(SocketAddr, Vec<Duration>)> = Vec::new();
    for _ in 0..count {
        let answers = client.ping()?;
        times.resize_with(answers.len(), || (answers[0].0, Vec::with_capacity(count as usize)));
        for ((place, times), (addr, time)) in times.iter_mut().zip(answers) {
            *place = addr;
            times.extend(time);
        }
    }
    let mut all_answered = true;
    for (addr, times) in &mut times {
        times.sort_unstable();
        let lost = count as usize - times.len();
        all_answered &= lost == 0;
        match (times.first(), times.get(times.len() / 2), times.last()) {
            (Some(min), Some(median), Some(max)) => {
                say(&format!(
                    "{addr}: min {min:.1?}, median {median:.1?}, max {max:.1?}, {lost} of {count} lost"
                ))?;
            }
            _ => say(&format!("{addr}: no answer, {lost} of {count} lost"))?,
        }
    }
    anyhow::ensure!(all_answered, "not every ping was answered");
    Ok(true)
}

/// Prints a line; that nobody reads it is an error like any other.
fn say(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot print")
}

fn stats<P: Port>(client: &mut Client<P>, all: bool) -> anyhow::Result<bool> {
    let mut all_answered = true;
    for (addr, values) in client.statistics()? {
        say(&addr.to_string())?;
        let Some(values) = values else {
            say("  no answer")?;
            all_answered = false;
            continue;
        };
        for (name, value) in STAT_NAMES.iter().zip(*values).filter(|&(_, value)| all || value > 0) {
            say(&format!("  {name:<20} {value}"))?;
        }
    }
    anyhow::ensure!(all_answered, "not every core answered");
    Ok(true)
}
