//! `import`: files of DRBD, Heartbeat and Keepalived become one configuration.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::agent::protocol::{ErrorKind, ErrorReply};
use crate::config::import::{Failure, Imported, Key, Request, import};
use crate::config::{Arbiter, FenceCommand, Spanned, Witness};

use super::offline::{self, config_error};
use super::{Global, text};

/// What a fence command may take, as in a configuration that does not say it.
const FENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// A secret in a configuration is at most this long.
const MAX_SECRET: usize = 48;

/// The name of the key file beside a configuration.
const KEY_NAME: &str = "cluster.key";

#[derive(Args, Debug)]
pub struct Import {
    /// `drbd FILE...`, `heartbeat DIR`, `keepalived FILE`: any of them, together
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<String>,
    /// Who decides when the two nodes cannot: witness=NAME@ADDR:PORT, fence=COMMAND, manual or
    /// unsafe-two-node
    #[arg(long, value_name = "VOTE", value_parser = vote)]
    vote: Option<Arbiter>,
    /// Where a node hears heartbeats
    #[arg(long, value_name = "NODE=ADDR:PORT", value_parser = node_address)]
    address: Vec<(String, SocketAddr)>,
    /// Disk of a node, where no source names one
    #[arg(long, value_name = "NODE=PATH", value_parser = node_path)]
    disk: Vec<(String, PathBuf)>,
}

fn vote(text: &str) -> Result<Arbiter, String> {
    match text.split_once('=') {
        None if text == "manual" => Ok(Arbiter::Manual),
        None if text == "unsafe-two-node" => Ok(Arbiter::UnsafeTwoNode),
        Some(("fence", command)) if !command.trim().is_empty() => {
            Ok(Arbiter::Fence(FenceCommand {
                command: command.to_owned(),
                timeout: FENCE_TIMEOUT,
            }))
        }
        Some(("witness", witness)) => {
            let (name, address) = witness
                .split_once('@')
                .ok_or("write witness=NAME@ADDR:PORT")?;
            let address = address
                .parse()
                .map_err(|_| format!("`{address}` is not ADDR:PORT"))?;
            Ok(Arbiter::Witness(Witness {
                name: Spanned::new(name.to_owned(), Default::default()),
                address: Spanned::new(address, Default::default()),
            }))
        }
        _ => {
            Err("write witness=NAME@ADDR:PORT, fence=COMMAND, manual or unsafe-two-node".to_owned())
        }
    }
}

fn pair(text: &str) -> Result<(&str, &str), String> {
    match text.split_once('=') {
        Some((node, value)) if !node.is_empty() && !value.is_empty() => Ok((node, value)),
        _ => Err("write NODE=VALUE".to_owned()),
    }
}

fn node_address(text: &str) -> Result<(String, SocketAddr), String> {
    let (node, address) = pair(text)?;
    let parsed = address
        .parse()
        .map_err(|_| format!("`{address}` is not ADDR:PORT"))?;
    Ok((node.to_owned(), parsed))
}

fn node_path(text: &str) -> Result<(String, PathBuf), String> {
    let (node, path) = pair(text)?;
    if !path.starts_with('/') {
        return Err(format!("`{path}` does not begin with `/`"));
    }
    Ok((node.to_owned(), PathBuf::from(path)))
}

/// Prints the configuration, or what has to be chosen: one `need:` line each and exit code 3.
pub fn run(global: &Global, args: &Import) -> Result<ExitCode, ErrorReply> {
    let request = request(global, args)?;
    let prepared = match import(&request) {
        Ok(prepared) => prepared,
        Err(failure) => return Err(failed(global, failure)),
    };
    let key = key(global)?;
    show(global, &prepared.with_key(&key));
    Ok(ExitCode::SUCCESS)
}

fn request(global: &Global, args: &Import) -> Result<Request, ErrorReply> {
    let mut request = Request {
        vote: args.vote.clone(),
        addresses: args.address.clone(),
        disks: args.disk.clone(),
        node: global.node(),
        ..Request::default()
    };
    let usage = |reason: String| {
        ErrorReply::new(
            ErrorKind::Usage,
            reason,
            "write `drbd FILE...`, `heartbeat DIR` or `keepalived FILE`",
        )
    };
    let mut kind = None;
    let mut words = args.sources.iter().peekable();
    while let Some(word) = words.next() {
        let path = PathBuf::from(word);
        match (word.as_str(), kind) {
            ("drbd" | "heartbeat" | "keepalived", _) => {
                if words.peek().is_none() {
                    return Err(usage(format!("`{word}` without what to read")));
                }
                kind = Some(word.as_str());
            }
            (_, Some("drbd")) => request.drbd.push(path),
            (_, Some("heartbeat")) if request.heartbeat.is_none() => {
                request.heartbeat = Some(path);
            }
            (_, Some("keepalived")) if request.keepalived.is_none() => {
                request.keepalived = Some(path);
            }
            (_, Some(kind)) => return Err(usage(format!("`{word}`: a second {kind}"))),
            (_, None) => return Err(usage(format!("`{word}`: of what program is that?"))),
        }
    }
    Ok(request)
}

/// What is wrong, or what has to be chosen.
fn failed(global: &Global, failure: Failure) -> ErrorReply {
    match failure {
        Failure::Wrong(errors) => config_error(&errors),
        Failure::Needs { needs, notes } => {
            let help = "run it again with these options; nothing was written";
            let first = match needs.len() {
                1 => "one thing has to be chosen".to_owned(),
                count => format!("{count} things have to be chosen"),
            };
            let reason = if global.json {
                format!("{first}: {}", needs.join("; "))
            } else {
                let needs = needs.iter().map(|need| format!("need: {need}"));
                let lines = needs.chain(notes.iter().map(|note| format!("note: {note}")));
                std::iter::once(first)
                    .chain(lines)
                    .collect::<Vec<_>>()
                    .join("\n")
            };
            ErrorReply::new(ErrorKind::Refused, reason, help)
        }
    }
}

fn show(global: &Global, imported: &Imported) {
    if global.json {
        text::pretty(&json!({"configuration": imported.text, "notes": imported.notes}));
    } else {
        let mut stream = std::io::stderr().lock();
        for note in &imported.notes {
            // Nobody may be reading.
            let _ = writeln!(stream, "note: {note}");
        }
        drop(stream);
        text::out(&imported.text);
    }
}

/// The key beside the configuration that this will become. One that is there is kept.
fn key(global: &Global) -> Result<Key, ErrorReply> {
    let path = match &global.config {
        Some(config) => {
            let folder = config.parent().unwrap_or(Path::new(""));
            std::path::absolute(folder.join(KEY_NAME)).unwrap_or_else(|_| folder.join(KEY_NAME))
        }
        None => PathBuf::from(offline::KEY_FILE),
    };
    if path.symlink_metadata().is_ok() {
        return Ok(Key::File(path));
    }
    let key = offline::fresh_key()?;
    match offline::make_key(&path, &key, false) {
        Ok(()) => Ok(Key::File(path)),
        // Somebody else was faster.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Key::File(path)),
        Err(_) => Ok(Key::Secret(path, key.chars().take(MAX_SECRET).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_of_every_kind() {
        assert_eq!(vote("manual"), Ok(Arbiter::Manual));
        assert_eq!(vote("unsafe-two-node"), Ok(Arbiter::UnsafeTwoNode));
        assert!(
            matches!(vote("fence=/sbin/x a=b"), Ok(Arbiter::Fence(f)) if f.command == "/sbin/x a=b")
        );
        assert!(matches!(
            vote("witness=gamma@[fd00::3]:7795"),
            Ok(Arbiter::Witness(w)) if w.address.value.port() == 7795
        ));
        for bad in ["", "fence=", "witness=gamma", "witness=gamma@host:1", "yes"] {
            assert!(vote(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nodes_and_their_values() {
        assert!(node_address("alpha=10.0.0.1:7794").is_ok());
        assert!(node_path("alpha=/dev/vg0/r0").is_ok());
        for bad in ["alpha", "=10.0.0.1:1", "alpha=", "alpha=10.0.0.1"] {
            assert!(node_address(bad).is_err(), "{bad}");
        }
        assert!(node_path("alpha=vg0/r0").is_err());
    }
}
