//! Disks that fill up, hang or shrink: detached with a reason, and the I/O goes on at the peer.
//!
//! The faults are real ones of the kernel: ENOSPC from a small ext4 file system on a loop device,
//! `fsfreeze` on it, and a backing file that is truncated under its user. They need root.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::node::Ran;
use crate::pair::{
    Meta, Pair, Plan, amount, connected, disk_state, noise, role, synced, text, tool, wait_status,
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

/// A file system of its own on a loop device, unmounted when this is dropped.
pub struct SmallFs {
    mount: PathBuf,
    _dir: TempDir,
}

fn needs_root(program: &str, package: &str, arguments: &[&str]) {
    let Ran { code, err, .. } = tool(program, package, arguments);
    assert_eq!(
        code, 0,
        "{program} failed; this test needs root and loop devices: {err}"
    );
}

impl SmallFs {
    pub fn new(bytes: u64) -> SmallFs {
        let dir = tempfile::Builder::new()
            .prefix("lockstep-process-fs-")
            .tempdir()
            .expect("dir");
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        File::create(&image)
            .expect("image")
            .set_len(bytes)
            .expect("size");
        std::fs::create_dir(&mount).expect("dir");
        needs_root("mkfs.ext4", "e2fsprogs", &["-q", "-m", "0", text(&image)]);
        needs_root(
            "mount",
            "mount",
            &["-o", "loop", text(&image), text(&mount)],
        );
        SmallFs { mount, _dir: dir }
    }

    /// A sparse file on it.
    pub fn disk(&self, bytes: u64) -> PathBuf {
        let path = self.mount.join("disk.img");
        File::create(&path)
            .expect("disk")
            .set_len(bytes)
            .expect("size");
        path
    }

    /// Fills it up to the last block.
    pub fn fill(&self) {
        let mut ballast = File::create(self.mount.join("ballast")).expect("ballast");
        for size in [1 << 20, 4096] {
            while ballast.write_all(&vec![0xff; size]).is_ok() {}
        }
        ballast.sync_all().expect("syncs");
    }

    /// Makes room again.
    pub fn clear(&self) {
        std::fs::remove_file(self.mount.join("ballast")).expect("removes");
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let mount = text(&self.mount);
        tool("umount", "mount", &["--lazy", mount]);
    }
}

/// What was zeroed, by the first sync for one, takes no room any more.
pub fn dig_holes(file: &Path) {
    tool("fallocate", "util-linux", &["--dig-holes", text(file)]).ok();
}

/// A disk whose writes can be made to wait.
pub struct FrozenDisk {
    fs: SmallFs,
    image: PathBuf,
}

impl FrozenDisk {
    pub fn new(bytes: u64) -> FrozenDisk {
        let fs = SmallFs::new(bytes + bytes / 2);
        let image = fs.disk(bytes);
        FrozenDisk { fs, image }
    }

    pub fn image(&self) -> PathBuf {
        self.image.clone()
    }

    pub fn freeze(&self) {
        needs_root(
            "fsfreeze",
            "util-linux",
            &["--freeze", text(&self.fs.mount)],
        );
    }

    pub fn thaw(&self) {
        needs_root(
            "fsfreeze",
            "util-linux",
            &["--unfreeze", text(&self.fs.mount)],
        );
    }
}

impl Drop for FrozenDisk {
    fn drop(&mut self) {
        // Fails when it is not frozen, which is the ordinary case.
        tool(
            "fsfreeze",
            "util-linux",
            &["--unfreeze", text(&self.fs.mount)],
        );
    }
}

/// Detached, and the status says why.
fn is_detached(now: &Value) -> bool {
    let reason = now["devices"][0]["reason"].as_str().unwrap_or("");
    disk_state(now) == "Diskless" && !reason.is_empty()
}

/// Gives alpha, which is primary and in use, its disk back: no request fails meanwhile.
fn take_back(pair: &Pair) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            let mut nbd = pair.nbd("alpha");
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let block = noise(65536, round);
                nbd.write(round % 16 * 65536, &block)
                    .expect("a write goes on");
                let found = nbd.read(round % 16 * 65536, 65536);
                assert!(found.expect("a read goes on") == block, "round {round}");
                nbd.flush().expect("a flush goes on");
            }
            round
        });
        pair.alpha.run(&["attach", "r0"]).ok();
        synced(&pair.alpha);
        stop.store(true, Ordering::Relaxed);
        assert!(user.join().expect("the user goes on") > 1);
    });
    assert_eq!(role(&pair.alpha), "Primary");
}

/// Writes 16 MiB at `base` and reads them back; no request may fail.
fn use_device(pair: &Pair, base: u64) {
    let mut nbd = pair.nbd("alpha");
    for chunk in 0..256 {
        let at = base + chunk * 65536;
        nbd.write(at, &noise(65536, at + 1))
            .expect("a write goes on");
    }
    nbd.flush().expect("a flush goes on");
    for chunk in 0..256 {
        let at = base + chunk * 65536;
        let found = nbd.read(at, 65536).expect("a read goes on");
        assert!(found == noise(65536, at + 1), "wrong data at {at}");
    }
}

#[test]
fn a_primary_whose_disk_is_full_goes_on_with_its_peer() {
    let fs = SmallFs::new(160 * MIB);
    let pair = Pair::in_sync(Plan {
        files: [("alpha.img", fs.disk(64 * MIB))].into(),
        ..Plan::default()
    });
    fs.fill();
    use_device(&pair, 16 * MIB);
    wait_status(&pair.alpha, "detached with a reason", SOON, is_detached);
    wait_status(&pair.beta, "the peer has all", SOON, |now| {
        disk_state(now) == "UpToDate"
    });
    fs.clear();
    let before = amount(&pair.beta, "sent");
    take_back(&pair);
    let sent = amount(&pair.beta, "sent") - before;
    assert!(
        (8 * 1024..40 * 1024).contains(&sent),
        "{sent} KiB to catch up"
    );
    // The peer is not needed any more.
    pair.beta.run(&["disconnect", "r0"]).ok();
    use_device(&pair, 24 * MIB);
    pair.beta.run(&["connect", "r0"]).ok();
    synced(&pair.alpha);
    pair.assert_identical();
}

#[test]
fn a_secondary_whose_disk_is_full_does_not_hold_the_primary() {
    let fs = SmallFs::new(160 * MIB);
    let disk = fs.disk(64 * MIB);
    let pair = Pair::in_sync(Plan {
        files: [("beta.img", disk.clone())].into(),
        ..Plan::default()
    });
    dig_holes(&disk);
    fs.fill();
    use_device(&pair, 16 * MIB);
    wait_status(&pair.beta, "detached with a reason", SOON, is_detached);
    assert_eq!(disk_state(&crate::pair::status(&pair.alpha)), "UpToDate");
    pair.beta.run(&["primary", "r0"]).failed(3, "primary");
    fs.clear();
    pair.beta.run(&["attach", "r0"]).ok();
    connected(&pair.alpha);
    synced(&pair.alpha);
    pair.assert_identical();
}

#[test]
fn a_disk_that_was_away_gets_what_it_missed() {
    let pair = Pair::in_sync(Plan::default());
    use_device(&pair, 8 * MIB);
    for _ in 0..2 {
        pair.beta.run(&["detach", "r0"]).ok();
        let missed = noise(MIB as usize, 77);
        pair.nbd("alpha").write(40 * MIB, &missed).expect("writes");
        let before = amount(&pair.alpha, "sent");
        pair.beta.run(&["attach", "r0"]).ok();
        synced(&pair.alpha);
        let sent = amount(&pair.alpha, "sent") - before;
        assert!(
            (1024..8 * 1024).contains(&sent),
            "{sent} KiB to catch up with 1 MiB"
        );
        pair.assert_identical();
    }
}

#[test]
fn a_disk_that_shrinks_is_detached_and_not_taken_back_without_metadata() {
    let pair = Pair::in_sync(Plan::default());
    use_device(&pair, 16 * MIB);
    let disk = File::options()
        .write(true)
        .open(pair.disk("alpha"))
        .expect("opens");
    disk.set_len(8 * MIB).expect("truncates");
    // The file ends early: what was there is read from the peer.
    let mut nbd = pair.nbd("alpha");
    let found = nbd.read(16 * MIB, 65536).expect("a read goes on");
    assert!(found == noise(65536, 16 * MIB + 1), "wrong data");
    drop(nbd);
    wait_status(&pair.alpha, "detached with a reason", SOON, is_detached);
    use_device(&pair, 32 * MIB);
    pair.alpha.run(&["secondary", "r0"]).ok();
    // Neither the stump nor the file at its old size is a copy.
    let stump = pair.alpha.run(&["attach", "r0"]);
    assert_eq!(stump.code, 3, "{stump:?}");
    disk.set_len(64 * MIB).expect("grows");
    let blank = pair.alpha.run(&["attach", "r0"]);
    assert_eq!(blank.code, 3, "{blank:?}");
    assert!(blank.err.contains("help: "), "{blank:?}");
    pair.alpha.run(&["create-md", "r0", "--force"]).ok();
    pair.alpha.run(&["attach", "r0"]).ok();
    synced(&pair.alpha);
    pair.assert_identical();
}

/// Written to behind its new end, a file would get longer again, with zeroes where data were, and
/// look well.
#[test]
fn a_file_that_was_made_shorter_is_not_made_longer_by_writes() {
    for meta in [Meta::Internal, Meta::File] {
        for victim in ["alpha", "beta"] {
            let pair = Pair::in_sync(Plan {
                meta,
                ..Plan::default()
            });
            use_device(&pair, 16 * MIB);
            let disk = File::options()
                .write(true)
                .open(pair.disk(victim))
                .expect("opens");
            disk.set_len(8 * MIB).expect("truncates");
            let mut nbd = pair.nbd("alpha");
            // An extent that the log covers, and one that it does not.
            for at in [16 * MIB, 40 * MIB] {
                nbd.write(at, &noise(65536, at)).expect("a write goes on");
            }
            nbd.flush().expect("a flush goes on");
            wait_status(pair.node(victim), "detached with a reason", SOON, |now| {
                let reason = now["devices"][0]["reason"].as_str().unwrap_or_default();
                disk_state(now) == "Diskless" && reason.contains("shorter")
            });
            assert_eq!(disk.metadata().expect("stat").len(), 8 * MIB, "{victim}");
            assert!(pair.node(victim).log().contains("shorter"));
            for at in [16 * MIB, 40 * MIB] {
                let found = nbd.read(at, 65536).expect("a read goes on");
                assert!(found == noise(65536, at), "wrong data at {at}");
            }
            drop(nbd);
            pair.alpha.run(&["secondary", "r0"]).ok();
            // As it is, it is refused.
            let refused = pair.node(victim).run(&["attach", "r0"]);
            assert_eq!(refused.code, 3, "{refused:?}");
            assert_eq!(disk.metadata().expect("stat").len(), 8 * MIB);
        }
    }
}

#[test]
fn both_disks_gone_is_an_io_error_and_no_crash() {
    let pair = Pair::in_sync(Plan::default());
    let plane = pair.alpha.plane("r0");
    pair.nbd("alpha").write(0, &[1; 4096]).expect("writes");
    pair.beta.run(&["detach", "r0"]).ok();
    pair.nbd("alpha")
        .write(0, &[2; 4096])
        .expect("one copy is enough");
    // The last copy is not given up by an order while it is in use.
    pair.alpha.run(&["detach", "r0"]).failed(3, "not UpToDate");
    // A fault does not ask.
    let disk = File::options()
        .write(true)
        .open(pair.disk("alpha"))
        .expect("opens");
    let kept = std::fs::read(pair.disk("alpha")).expect("reads");
    disk.set_len(0).expect("truncates");
    assert!(pair.nbd("alpha").read(0, 4096).is_err(), "nobody has it");
    assert!(
        pair.nbd("alpha").write(0, &[3; 4096]).is_err(),
        "nobody takes it"
    );
    assert_eq!(pair.alpha.plane("r0"), plane, "no crash");
    disk.write_all_at(&kept, 0).expect("mends");
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.alpha.run(&["attach", "r0"]).ok();
    pair.beta.run(&["attach", "r0"]).ok();
    synced(&pair.alpha);
    pair.alpha.run(&["primary", "r0"]).ok();
    assert_eq!(pair.nbd("alpha").read(0, 4096).expect("reads"), [2; 4096]);
    pair.assert_identical();
}

#[test]
fn a_disk_in_use_is_refused() {
    let pair = Pair::in_sync(Plan::default());
    pair.alpha
        .run(&["create-md", "r0", "--force"])
        .failed(3, "alpha.img");
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.alpha.run(&["detach", "r0"]).ok();
    let image: &Path = &pair.disk("alpha");
    let before = File::open(image).expect("opens");
    let mut superblock = [0; 4096];
    before
        .read_exact_at(&mut superblock, 64 * MIB - 4096)
        .expect("reads");
    // Somebody else has it.
    let holder = File::options()
        .read(true)
        .write(true)
        .open(image)
        .expect("opens");
    rustix::fs::flock(&holder, rustix::fs::FlockOperation::LockExclusive).expect("locks");
    pair.alpha.run(&["attach", "r0"]).failed(3, "locked");
    pair.alpha
        .run(&["create-md", "r0", "--force"])
        .failed(3, "locked");
    let mut after = [0; 4096];
    before
        .read_exact_at(&mut after, 64 * MIB - 4096)
        .expect("reads");
    assert!(superblock == after, "nothing is written");
    drop(holder);
    pair.alpha.run(&["attach", "r0"]).ok();
    synced(&pair.alpha);
}
