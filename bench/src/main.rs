//! `lockstep-bench`: how fast a pair is, and how far from what its disk and network allow.
//!
//! `run`, `resync` and `verify` measure on this machine, without privileges; `report` draws the
//! figures of `run` again.
//! Exit codes: 0 done, 1 failed, 2 wrong use.

mod disk;
mod drive;
mod error;
mod nbd;
mod pacing;
mod page;
mod pair;
mod plan;
mod plot;
mod report;
mod resync;
mod run;
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};

use crate::error::BenchError;
use crate::plan::{Pattern, Protocol, Transport, cases};
use crate::report::Report;
use crate::resync::Job;
use crate::run::{Setup, run};

/// Largest request: what a replicated volume takes in one piece.
const MAX_BLOCK: u32 = 1 << 20;

#[derive(Parser)]
#[command(
    name = "lockstep-bench",
    version,
    about = "Measures lockstep on this machine"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure a pair on this machine, and what its disk and network can do at most
    Run(RunArguments),
    /// Measure a resync, and what disks and network allow
    Resync {
        #[command(flatten)]
        common: SyncArguments,
        /// Resync random blocks of 4 KiB, this share of the device, instead of all of it
        #[arg(long, value_name = "PERCENT", value_delimiter = ',', value_parser = percent)]
        dirty: Vec<f64>,
    },
    /// Measure an online verify, and what the disks allow
    Verify {
        #[command(flatten)]
        common: SyncArguments,
        /// How blocks are compared
        #[arg(long, value_delimiter = ',', default_value = "crc32c",
              value_parser = PossibleValuesParser::new(lockstep::config::VERIFY_ALGS))]
        alg: Vec<String>,
    },
    /// Draw the plots of an earlier run
    Report {
        /// What `run --json` has written
        json: PathBuf,
        /// Where to write the page
        #[arg(long, value_name = "FILE")]
        html: PathBuf,
    },
}

#[derive(Args)]
struct RunArguments {
    #[arg(long, value_delimiter = ',', default_value = "A,B,C")]
    protocol: Vec<Protocol>,
    #[arg(long, value_delimiter = ',', default_value = "tcp")]
    transport: Vec<Transport>,
    /// Request sizes: multiples of 4k up to 1m
    #[arg(long, value_delimiter = ',', default_value = "4k,128k", value_parser = block_size)]
    bs: Vec<u32>,
    /// Requests in flight, up to 256
    #[arg(long, value_delimiter = ',', default_value = "1,32",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    iodepth: Vec<u32>,
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "randwrite,randread,write"
    )]
    rw: Vec<Pattern>,
    /// Measured time per case
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Size of the volume; three files of it are made
    #[arg(long, default_value = "128m", value_parser = volume_size)]
    size: u64,
    /// Where the disks are made [default: the folder for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The lockstep program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where to write the figures
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
    /// Where to write the page
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
}

#[derive(Args)]
struct SyncArguments {
    /// Size of the volume; four files of it are made
    #[arg(long, default_value = "1g", value_parser = volume_size)]
    size: u64,
    /// Cap per second: set while the pair runs, and held against what is moved in any 2 s
    #[arg(long, value_parser = rate)]
    rate: Option<u64>,
    /// How often limits and pair are measured in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// With a cap: measured time
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(3..=3600))]
    seconds: u32,
    /// Where the disks are made [default: the folder for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The lockstep program [default: beside this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where to write a page with the rates over time
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A number of bytes with an optional k, m or g.
fn bytes(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let (digits, shift) = match text.strip_suffix(['k', 'm', 'g']) {
        Some(digits) if text.ends_with('k') => (digits, 10),
        Some(digits) if text.ends_with('m') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (text.as_str(), 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn block_size(text: &str) -> Result<u32, &'static str> {
    bytes(text)
        .and_then(|count| u32::try_from(count).ok())
        .filter(|count| (4096..=MAX_BLOCK).contains(count) && count % 4096 == 0)
        .ok_or("a multiple of 4k up to 1m is needed")
}

fn rate(text: &str) -> Result<u64, &'static str> {
    bytes(text)
        .filter(|count| *count >= 64 << 10 && count % 1024 == 0)
        .ok_or("a rate of at least 64k is needed")
}

fn percent(text: &str) -> Result<f64, &'static str> {
    { text.parse().ok() }
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .ok_or("a number above 0 up to 100 is needed")
}

fn volume_size(text: &str) -> Result<u64, &'static str> {
    bytes(text)
        .filter(|count| (16 << 20..=1 << 40).contains(count))
        .ok_or("a size from 16m to 1024g is needed")
}

/// A wrong combination of options: ends the program as a wrong option does.
fn wrong(message: String) -> ! {
    use clap::{CommandFactory, error::ErrorKind};
    Cli::command()
        .error(ErrorKind::ValueValidation, message)
        .exit()
}

/// Checks early what would otherwise fail after minutes of measuring.
fn check_target(path: &Path) {
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => path,
    };
    if !folder.is_dir() {
        wrong(format!("there is no folder {}", folder.display()));
    }
    if path.is_dir() {
        wrong(format!("{} is a folder", path.display()));
    }
}

/// `lockstep` in the folder of this program.
fn neighbour() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("lockstep")
}

/// The program that is measured.
fn program(given: Option<PathBuf>) -> PathBuf {
    let program = given.unwrap_or_else(neighbour);
    if !program.is_file() {
        wrong(format!(
            "{} is not there; build it (cargo build --release), or name it with --program",
            program.display()
        ));
    }
    program
}

fn measure_syncs(jobs: Vec<Job>, common: SyncArguments) -> Result<(), BenchError> {
    if let Some(html) = &common.html {
        check_target(html);
    }
    resync::run(&resync::Setup {
        jobs,
        size: common.size,
        rate: common.rate,
        rounds: common.rounds,
        seconds: common.seconds,
        dir: common.dir.unwrap_or_else(std::env::temp_dir),
        program: program(common.program),
        html: common.html,
    })
}

fn measure(arguments: RunArguments) -> Result<(), BenchError> {
    let (json, html) = (arguments.json, arguments.html);
    check_target(&json);
    check_target(&html);
    let setup = Setup {
        cases: cases(&arguments.rw, &arguments.bs, &arguments.iodepth),
        protocols: arguments.protocol,
        transports: arguments.transport,
        seconds: arguments.seconds,
        size: arguments.size,
        dir: arguments.dir.unwrap_or_else(std::env::temp_dir),
        program: program(arguments.program),
    };
    let report = run(&setup)?;
    report.write(&json)?;
    page::write(&report, &html)
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Run(arguments) => measure(arguments),
        Verb::Resync { common, dirty } => {
            let jobs = match dirty.is_empty() {
                true => vec![Job::Resync],
                false => { dirty.into_iter() }
                    .map(|percent| Job::Dirty { percent })
                    .collect(),
            };
            measure_syncs(jobs, common)
        }
        Verb::Verify { common, alg } => {
            let jobs = alg.into_iter().map(|alg| Job::Verify { alg }).collect();
            measure_syncs(jobs, common)
        }
        Verb::Report { json, html } => {
            check_target(&html);
            Report::read(&json).and_then(|report| page::write(&report, &html))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_and_nonsense_is_not() {
        assert_eq!(block_size("4k"), Ok(4096));
        assert_eq!(block_size("1M"), Ok(1 << 20));
        for bad in [
            "",
            "k",
            "3k",
            "0",
            "2m",
            "-4k",
            "4kk",
            "99999999999999999999g",
        ] {
            assert!(block_size(bad).is_err(), "{bad}");
        }
        assert_eq!(volume_size("1g"), Ok(1 << 30));
        assert!(volume_size("15m").is_err());
        assert!(volume_size("18446744073709551615g").is_err());
    }

    #[test]
    fn wrong_options_are_refused() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' ')).map(|_| ());
        let good = "bench run --json a --html b";
        parse(good).expect("parses");
        parse(&format!("{good} --protocol c,A --iodepth 7 --rw write")).expect("parses");
        for bad in [
            "--protocol D",
            "--transport rdma",
            "--iodepth 0",
            "--seconds 0",
            "--rw trim",
        ] {
            assert!(parse(&format!("{good} {bad}")).is_err(), "{bad}");
        }
        assert!(parse("bench run").is_err());
        for good in [
            "resync",
            "resync --size 2g --rate 10m --seconds 5",
            "resync --dirty 1,5.5",
            "verify --alg crc32c,sha256",
        ] {
            parse(&format!("bench {good}")).expect("parses");
        }
        for bad in [
            "resync --rate 1k",
            "resync --dirty 0",
            "resync --alg crc32c",
            "verify --dirty 1",
            "verify --alg blake3",
            "verify --rounds 0",
        ] {
            assert!(parse(&format!("bench {bad}")).is_err(), "{bad}");
        }
    }
}
