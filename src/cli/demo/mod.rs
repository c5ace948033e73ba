//! `lockstep demo`: the whole story of a replicated disk on one machine.
//!
//! Two nodes run as real processes on loopback with files as disks, started from this very binary
//! and ordered about through its command line, as an administrator would. The demo writes through
//! the front end, remembers what was acknowledged, kills one node, has the other take over, and
//! checks every promise on the way: the last line says `PASS` with its figures, or `FAIL` with the
//! promise that broke.
//!
//! - [`scene`]: folder, disks, configuration; [`node`]: processes and verbs of a node
//! - [`front`], [`nbd_client`]: reading and writing the volume
//! - [`load`]: what was written, and whether it is there; [`latency`]: how long a write takes
//! - [`story`]: what is printed; [`stop`]: Ctrl-C; [`fault`]: every way to fail

mod compare;
mod fault;
mod front;
mod latency;
mod load;
mod nbd_client;
mod node;
mod play;
mod scene;
mod stop;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::text;
use fault::Fault;
use play::{Figures, Play};
use scene::Folder;
use stop::Stop;
use story::Story;

/// Least size of the disks: room for what the story writes, with something left unchanged.
const MIN_SIZE: u64 = 32 << 20;
/// Largest: beyond it the initial sync is no demonstration any more.
const MAX_SIZE: u64 = 64 << 30;

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Leave the pair running at the end, and say how to reach it
    #[arg(long)]
    keep: bool,
    /// Folder for disks and sockets, missing or empty [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Size of each disk
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
    size: u64,
}

/// Tells the story. The last line on standard output is the verdict; exit code 0 or 1.
pub fn run(args: &DemoArgs) -> ExitCode {
    match tell(args, &mut Story::begin()) {
        Ok(figures) => {
            text::line(&format!("demo: PASS {figures}"));
            ExitCode::SUCCESS
        }
        Err(fault) => {
            text::line(&format!("demo: FAIL {fault}"));
            ExitCode::FAILURE
        }
    }
}

fn tell(args: &DemoArgs, story: &mut Story) -> Result<Figures, Fault> {
    let stop = Stop::on_signals()?;
    let mut folder = Folder::new(args.dir.as_deref())?;
    // Ended before the folder goes, whatever happens.
    let mut play = Play::prepare(folder.path(), args.size, stop)?;
    let figures = match play.perform(story) {
        Ok(figures) => figures,
        Err(fault) => {
            play.last_words(story);
            return Err(fault);
        }
    };
    let seconds = story.elapsed().as_secs_f32();
    if args.keep {
        folder.keep();
        play.keep(story, folder.path());
    } else {
        play.end()?;
        folder.remove()?;
    }
    story.say(&format!("{seconds:.1} s in all"));
    Ok(figures)
}

/// Reads `256M`, `1G`, `65536K` or bytes; a whole number of 4 KiB blocks.
fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return Err(format!("unknown unit '{unit}'; use K, M or G")),
    };
    let bytes = digits.parse::<u64>().ok();
    let bytes = bytes.and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if !(MIN_SIZE..=MAX_SIZE).contains(&bytes) => {
            Err("sizes from 32M to 64G are possible".to_owned())
        }
        Some(bytes) if bytes % load::BLOCK as u64 == 0 => Ok(bytes),
        Some(_) => Err("a multiple of 4K is needed".to_owned()),
        None => Err("a whole number with K, M or G is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("256M"), Ok(256 << 20));
        assert_eq!(size("1g"), Ok(1 << 30));
        assert_eq!(size("65536K"), Ok(64 << 20));
        assert_eq!(size("33554432"), Ok(32 << 20));
        for bad in [
            "",
            "M",
            "-1M",
            "31M",
            "65G",
            "1T",
            "33554433",
            "99999999999999999999G",
            "18014398509481984K",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
