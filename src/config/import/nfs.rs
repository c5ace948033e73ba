//! The recipe for an NFS server whose clients do not notice a failover: what it must remember lies
//! on the volume, and it has stopped before the volume is unmounted.

use std::fs;
use std::path::Path;

use super::super::failover::{CheckOptions, Control, Service};

/// What the server remembers of its clients, below `/var/lib/nfs`: opens and locks of version 4
/// (two generations of the program that keeps them), and who is to be told of version 3.
const STATE: &str = "nfsdcld nfsdcltrack v4recovery sm sm.bak";

/// Where that is on the volume.
const FOLDER: &str = ".nfs-state";

/// The step that starts and stops the server of what is mounted at `dir`.
pub fn service(dir: &Path) -> Service {
    let folder = dir.join(FOLDER);
    let folder = super::heartbeat::quoted(&folder.to_string_lossy());
    let start = format!(
        "systemctl stop nfs-server nfsdcld rpc-statd 2>/dev/null; \
         for d in {STATE}; do s={folder}/$d; l=/var/lib/nfs/$d; mkdir -p $s $l || exit 1; \
         mountpoint -q $l || {{ chown --reference=$l $s; mount --bind $s $l; }} || exit 1; done; \
         systemctl start nfs-server"
    );
    let stop = format!(
        "systemctl stop nfs-server nfsdcld rpc-statd 2>/dev/null; \
         for d in {STATE}; do l=/var/lib/nfs/$d; ! mountpoint -q $l || umount $l || exit 1; done"
    );
    Service {
        name: "nfs-server".to_owned(),
        control: Control::Commands { start, stop },
        check: Some("systemctl is-active --quiet nfs-server".to_owned()),
        options: CheckOptions::default(),
    }
}

/// What clients would notice of the exports in `file`.
pub fn exports(file: &Path, dir: &Path) -> Vec<String> {
    let Ok(text) = fs::read_to_string(file) else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if !line
            .split_whitespace()
            .next()
            .is_some_and(|path| Path::new(path).starts_with(dir))
        {
            continue;
        }
        let mut note = |text: &str| {
            let number = number + 1;
            notes.push(format!("{}:{number}: {text}", file.display()));
        };
        let options = |name: &str| {
            line.split(['(', ')', ','])
                .any(|option| option == name || option.starts_with(&format!("{name}=")))
        };
        if !options("fsid") {
            note("write `fsid=N`, the same on both nodes: handles of clients depend on it");
        }
        if !options("mp") {
            note("write `mp`: nothing is exported while the volume is not mounted");
        }
        let wildcard = |word: &str| {
            let host = word.split('(').next().unwrap_or("");
            host.ends_with(".*")
                && host
                    .bytes()
                    .all(|b| b.is_ascii_digit() || b".*".contains(&b))
        };
        if line.split_whitespace().skip(1).any(wildcard) {
            note("an address with `*` matches by luck: write a network, as in 10.96.20.0/24");
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_that_clients_would_notice_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("exports");
        fs::write(
            &file,
            "/other *(rw)\n/data/x 10.0.0.*(rw,sync) # note\n/data 10.0.0.0/24(rw,mp,fsid=3)\n",
        )
        .unwrap();
        let notes = exports(&file, Path::new("/data"));
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes.iter().all(|note| note.contains("exports:2: ")));
    }

    #[test]
    fn the_commands_are_commands() {
        let Control::Commands { start, stop } = service(Path::new("/srv/my data")).control else {
            panic!("no commands");
        };
        for command in [start, stop] {
            let checked = std::process::Command::new("sh")
                .args(["-n", "-c", &command])
                .status();
            assert!(checked.unwrap().success(), "{command}");
        }
    }
}
