//! The listening sockets of NBD exports.
//!
//! The agent makes them, because their paths are in the file system that a data plane has left,
//! and hands them over; the data plane's copy alone is left. A place that somebody else has keeps
//! no data plane from replicating: it is tried again, and named in the status meanwhile.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::channel::blocking;
use super::protocol::{ErrorKind, ErrorReply, FrontEnd};
use crate::target::nbd::{ListenError, listen_tcp, listen_unix};
use crate::target::processes::{name, processes};

/// Between two looks at a place that is taken.
const RETRY: Duration = Duration::from_millis(20);

/// Makes the listening socket of an export. A place that is taken is waited for during `patience`:
/// the kernel takes apart the ring of a dead data plane, and with it the accept that holds its
/// socket, only after that process has ended.
pub async fn listen(front: &FrontEnd, patience: Duration) -> Result<OwnedFd, ErrorReply> {
    let place = front.clone();
    let made = blocking(move || {
        let deadline = Instant::now() + patience;
        loop {
            match listen_once(&place) {
                Err(Trouble::Listen(ListenError::InUse(_))) if Instant::now() < deadline => {
                    sleep(RETRY);
                }
                done => return done.map_err(|trouble| reply(&place, &trouble)),
            }
        }
    });
    made.await.unwrap_or_else(|| {
        Err(ErrorReply::new(
            ErrorKind::Failed,
            format!("making the socket of {} was broken off", front.path()),
            "see the agent's log",
        ))
    })
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("{0} is not IP:PORT")]
    Address(String),
    #[error("a block device has no socket")]
    Device,
}

fn listen_once(front: &FrontEnd) -> Result<OwnedFd, Trouble> {
    match front {
        FrontEnd::Ublk { .. } => Err(Trouble::Device),
        FrontEnd::NbdUnix { path, .. } => Ok(listen_unix(Path::new(path))?),
        FrontEnd::NbdTcp { address, .. } => {
            let parsed = address.parse();
            let place = parsed.map_err(|_| Trouble::Address(address.clone()))?;
            Ok(listen_tcp(place)?)
        }
    }
}

fn reply(front: &FrontEnd, trouble: &Trouble) -> ErrorReply {
    let reason = format!("nobody can reach {}: {trouble}", front.path());
    match trouble {
        Trouble::Listen(ListenError::InUse(_)) => {
            let owner = owner(front).map_or(String::new(), |owner| format!(": {owner}"));
            ErrorReply::new(
                ErrorKind::Refused,
                format!("{reason}{owner}"),
                "end it, or give the volume another `device` on this node",
            )
        }
        Trouble::Listen(ListenError::NotASocket(_)) => ErrorReply::new(
            ErrorKind::Refused,
            reason,
            "move it away, or give the volume another `device` on this node",
        ),
        Trouble::Listen(ListenError::PathTooLong { .. }) | Trouble::Address(_) => ErrorReply::new(
            ErrorKind::Refused,
            reason,
            "give the volume another `device` on this node",
        ),
        Trouble::Listen(ListenError::System { .. }) | Trouble::Device => ErrorReply::new(
            ErrorKind::Failed,
            reason,
            "is the folder there, and is the address one of this node's?",
        ),
    }
}

/// Who listens at the place of an export, if a process can be found.
fn owner(front: &FrontEnd) -> Option<String> {
    let table = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let inodes = match front {
        FrontEnd::Ublk { .. } => Vec::new(),
        FrontEnd::NbdUnix { path, .. } => unix_listeners(&table("unix"), path),
        FrontEnd::NbdTcp { address, .. } => {
            let address: SocketAddr = address.parse().ok()?;
            let both = [table("tcp"), table("tcp6")];
            let both = both.iter().flat_map(|table| tcp_listeners(table, address));
            both.collect()
        }
    };
    let links: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let mine = |process: &crate::target::processes::Process| {
        process.opened().any(|opened| links.contains(&opened))
    };
    processes().find(mine).map(|process| name(process.pid))
}

/// Inodes of the sockets that listen at `path`, from `/proc/net/unix`.
fn unix_listeners(table: &str, path: &str) -> Vec<String> {
    const ACCEPTS: u32 = 1 << 16;
    let listener = |line: &str| {
        let mut words = line.splitn(8, ' ').filter(|word| !word.is_empty());
        let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
        let rest = line.split_whitespace();
        let inode = rest.clone().nth(6)?;
        let at = line.find(&format!(" {path}"))?;
        (flags & ACCEPTS != 0 && line.get(at + 1..) == Some(path)).then(|| inode.to_owned())
    };
    table.lines().filter_map(listener).collect()
}

/// Inodes of the sockets that listen where `place` would, from `/proc/net/tcp` or `tcp6`.
fn tcp_listeners(table: &str, place: SocketAddr) -> Vec<String> {
    const LISTENS: &str = "0A";
    let words: Vec<u32> = match place {
        SocketAddr::V4(v4) => vec![u32::from_ne_bytes(v4.ip().octets())],
        SocketAddr::V6(v6) => {
            let octets = v6.ip().octets();
            let parts = octets.as_chunks::<4>().0.iter();
            parts.map(|part| u32::from_ne_bytes(*part)).collect()
        }
    };
    let host: String = words.iter().map(|word| format!("{word:08X}")).collect();
    let port = format!("{:04X}", place.port());
    let listener = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, at) = fields.get(1)?.split_once(':')?;
        let clashes =
            place.ip().is_unspecified() || ip == host || ip.bytes().all(|digit| digit == b'0');
        let inode = fields.get(9)?;
        (at == port && clashes && fields.get(3) == Some(&LISTENS)).then(|| (*inode).to_owned())
    };
    table.lines().filter_map(listener).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_found_in_the_kernels_tables() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                   uid  timeout inode\n   \
                   0: 0100007F:2A39 00000000:0000 0A 00000000:00000000 00:00000000 00000000     \
                   0        0 4711 1 0000000000000000 100 0 0 10 0\n   \
                   1: 0100007F:2A39 0100007F:9999 01 00000000:00000000 00:00000000 00000000     \
                   0        0 4712 1 0000000000000000 100 0 0 10 0\n   \
                   2: 00000000:2A3A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     \
                   0        0 4713 1 0000000000000000 100 0 0 10 0\n";
        let at = |text: &str| tcp_listeners(tcp, text.parse().expect("an address"));
        assert_eq!(at("127.0.0.1:10809"), ["4711"]);
        assert_eq!(at("127.0.0.2:10809"), [""; 0]);
        assert_eq!(at("0.0.0.0:10809"), ["4711"]);
        assert_eq!(at("127.0.0.2:10810"), ["4713"]);
        let unix = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                    0000000000000000: 00000002 00000000 00010000 0001 01 815 /run/a b.nbd\n\
                    0000000000000000: 00000003 00000000 00000000 0001 03 816 /run/a b.nbd\n\
                    0000000000000000: 00000002 00000000 00010000 0001 01 817 /run/a\n\
                    0000000000000000: 00000002 00000000 00010000 0001 01   818\n";
        assert_eq!(unix_listeners(unix, "/run/a b.nbd"), ["815"]);
        assert_eq!(unix_listeners(unix, "/run/a"), ["817"]);
        assert_eq!(unix_listeners(unix, "/run"), [""; 0]);
    }

    #[test]
    fn a_place_that_is_taken_is_waited_for_and_its_owner_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("r0.nbd");
        let front = FrontEnd::NbdUnix {
            path: path.display().to_string(),
            export: "r0".to_owned(),
        };
        tokio_uring::start(async {
            let first = listen(&front, Duration::ZERO).await.expect("is free");
            let refused = listen(&front, Duration::ZERO).await.expect_err("taken");
            assert_eq!(refused.exit, 3, "{refused:?}");
            // A child that inherits it: this process does not look at itself.
            let mut child = std::process::Command::new("sleep")
                .arg("60")
                .stdin(first)
                .spawn()
                .expect("starts");
            let refused = listen(&front, Duration::ZERO).await.expect_err("taken");
            let pid = format!("({})", child.id());
            assert!(refused.reason.contains(&pid), "{refused:?}");
            assert!(refused.reason.contains("r0.nbd"), "{refused:?}");
            let ends = std::thread::spawn(move || {
                sleep(Duration::from_millis(200));
                child.kill().expect("ends");
                child.wait().expect("ends");
            });
            let late = listen(&front, Duration::from_secs(20)).await;
            assert!(late.is_ok(), "{late:?}");
            ends.join().expect("ends");
            let nowhere = FrontEnd::NbdUnix {
                path: "/nonexistent/r0.nbd".to_owned(),
                export: "r0".to_owned(),
            };
            let failed = listen(&nowhere, Duration::ZERO)
                .await
                .expect_err("no folder");
            assert_eq!(failed.exit, 1, "{failed:?}");
        });
    }
}
