//! A root that holds only `/dev`.
//!
//! A process keeps every mount of its namespace alive. A data plane in the host's namespace, or in
//! a copy of it, would therefore keep the file system on its own device mounted, and could wait
//! for itself when it ends. So it gets a namespace with one empty, tiny file system and the host's
//! device nodes in it.

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Where the new root is built; every Linux system has this folder, and only this process sees
/// what is mounted on it.
const PLACE: &str = "/tmp";

/// Enters the private root. Without the privilege for it a note is logged: an NBD front end works
/// either way.
pub fn enter_private_root() {
    if let Err((step, errno)) = enter() {
        tracing::info!(%errno, step, "no private root (CAP_SYS_ADMIN); ublk needs one");
    }
}

fn enter() -> Result<(), (&'static str, Errno)> {
    let at = |step| move |errno| (step, errno);
    // SAFETY: the descriptor table stays shared; only the mount namespace and the file-system
    // context change, and this is the only thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(at("unshare"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(at("private"))?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("none", PLACE, "tmpfs", flags, Some(c"size=64k,mode=755")).map_err(at("tmpfs"))?;
    chdir(PLACE).map_err(at("chdir"))?;
    mkdirat(CWD, "dev", Mode::from_raw_mode(0o755)).map_err(at("mkdir"))?;
    mount_bind_recursive("/dev", "dev").map_err(at("bind"))?;
    pivot_root(".", ".").map_err(at("pivot"))?;
    unmount(".", UnmountFlags::DETACH).map_err(at("unmount"))?;
    chdir("/").map_err(at("root"))
}
