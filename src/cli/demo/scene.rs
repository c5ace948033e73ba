//! Where the story takes place: a folder, the disks in it, and the configuration of the pair.

use std::fmt::Write;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::fault::Fault;
use super::front::{Place, free_minors, ublk_is_there};
use crate::agent::dirs::{Dirs, check_socket_path};

/// The resource that the story is about.
pub const STORY: &str = "r0";
/// Resources that latencies are measured on, and their protocols.
pub const MEASURED: [(&str, char); 3] = [("r-a", 'A'), ("r-b", 'B'), ("r-c", 'C')];
/// Bytes of their disks.
const MEASURED_BYTES: u64 = 16 << 20;
/// The nodes, in the order of their ids.
pub const NODES: [&str; 2] = ["alpha", "beta"];

/// The demo's folder. Dropping it removes what the demo put there.
pub struct Folder {
    path: PathBuf,
    /// Made by the demo, so to be removed with its content.
    made: bool,
    keep: bool,
}

impl Folder {
    /// `wanted`, which must be missing or empty, or a fresh one for temporary files.
    pub fn new(wanted: Option<&Path>) -> Result<Folder, Fault> {
        let path = match wanted {
            Some(path) => std::path::absolute(path),
            None => Ok(std::env::temp_dir().join(format!("lockstep-demo-{}", fresh_word()?))),
        };
        let path = path.map_err(Fault::io("the folder"))?;
        let failed = || Fault::io(path.display().to_string());
        // For the eyes of this user only: whoever reaches the sockets reaches the data.
        let made = match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => true,
            Err(error) if wanted.is_some() && error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed()(error)),
        };
        if fs::read_dir(&path).map_err(failed())?.next().is_some() {
            return Err(Fault::FolderTaken {
                folder: path.display().to_string(),
            });
        }
        Ok(Folder {
            path,
            made,
            keep: false,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves everything in place.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Removes everything that the demo put there.
    pub fn remove(mut self) -> Result<(), Fault> {
        self.keep = true;
        self.clear()
            .map_err(Fault::io(self.path.display().to_string()))
    }

    fn clear(&self) -> io::Result<()> {
        if self.made {
            return fs::remove_dir_all(&self.path);
        }
        // It was empty when the demo came.
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            // The way out of a failure; it was told already.
            let _ = self.clear();
        }
    }
}

fn fresh_word() -> Result<String, Fault> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|_| Fault::Random)?;
    Ok(format!("{:08x}", u32::from_le_bytes(bytes)))
}

/// One resource on both nodes.
struct Leg {
    name: &'static str,
    protocol: char,
    /// By node.
    places: [Place; 2],
    addresses: [SocketAddr; 2],
}

/// Disks and configuration.
pub struct Scene {
    folder: PathBuf,
    legs: Vec<Leg>,
}

impl Scene {
    /// Makes the disks, `bytes` each for the story, and writes the configuration.
    pub fn set(folder: &Path, bytes: u64) -> Result<Scene, Fault> {
        check_length(folder)?;
        check_space(folder, 2 * (bytes + MEASURED.len() as u64 * MEASURED_BYTES))?;
        let names = [(STORY, 'C', bytes)].into_iter();
        let names: Vec<_> = names
            .chain(MEASURED.map(|(name, protocol)| (name, protocol, MEASURED_BYTES)))
            .collect();
        let addresses = free_addresses(2 * names.len())?;
        let minors = match ublk_is_there() {
            true => free_minors(2 * names.len()),
            false => Vec::new(),
        };
        let mut scene = Scene {
            folder: folder.to_owned(),
            legs: Vec::new(),
        };
        for (index, (name, protocol, bytes)) in names.into_iter().enumerate() {
            let place = |node: usize| match minors.get(2 * index + node) {
                Some(minor) => Place::Device(*minor),
                None => Place::Nbd {
                    socket: folder.join(format!("{}-{name}.nbd", NODES[node])),
                    export: name.to_owned(),
                },
            };
            let places = [place(0), place(1)];
            for node in 0..2 {
                let path = scene.disk(node, name);
                make_disk(&path, bytes).map_err(Fault::io(path.display().to_string()))?;
            }
            scene.legs.push(Leg {
                name,
                protocol,
                places,
                addresses: [addresses[2 * index], addresses[2 * index + 1]],
            });
        }
        fs::write(scene.config(), scene.text()).map_err(Fault::io("the configuration"))?;
        Ok(scene)
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("lockstep.conf")
    }

    /// The file behind a resource on a node.
    pub fn disk(&self, node: usize, resource: &str) -> PathBuf {
        self.folder.join(format!("{}-{resource}.img", NODES[node]))
    }

    /// How a resource is reached while `node` is primary.
    pub fn place(&self, node: usize, resource: &str) -> Option<&Place> {
        let leg = self.legs.iter().find(|leg| leg.name == resource)?;
        leg.places.get(node)
    }

    fn text(&self) -> String {
        let mut text = String::from("# Two nodes on one machine, made by `lockstep demo`.\n");
        for leg in &self.legs {
            // Writing to a string does not fail.
            let _ = self.write_leg(&mut text, leg);
        }
        text
    }

    fn write_leg(&self, text: &mut String, leg: &Leg) -> std::fmt::Result {
        writeln!(text, "\nresource {} {{", leg.name)?;
        writeln!(text, "    meta-disk internal;")?;
        writeln!(text, "    net {{ protocol {}; }}", leg.protocol)?;
        if leg.name != STORY {
            writeln!(text, "    failover {{ start-policy manual; }}")?;
        }
        for (node, name) in NODES.iter().enumerate() {
            writeln!(text, "    on {name} {{")?;
            writeln!(text, "        node-id {node};")?;
            writeln!(text, "        address {};", leg.addresses[node])?;
            writeln!(
                text,
                "        device \"{}\";",
                leg.places[node].configured()
            )?;
            let disk = self.disk(node, leg.name);
            writeln!(text, "        disk \"{}\";", disk.display())?;
            writeln!(text, "    }}")?;
        }
        writeln!(text, "}}")
    }
}

/// Makes a file of `bytes` that lies in one piece, where the file system can say so beforehand.
fn make_disk(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::create_new(path)?;
    file.set_len(bytes)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(errno) if errno != Errno::OPNOTSUPP => Err(errno.into()),
        _ => Ok(()),
    }
}

/// Addresses on loopback that are free now. All are held until all are found, so they differ.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>, Fault> {
    let failed = || Fault::io("a port on 127.0.0.1");
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?);
    }
    let addresses = held.iter().map(TcpListener::local_addr);
    addresses.collect::<io::Result<_>>().map_err(failed())
}

/// The sockets of a node's data planes have the longest paths of all sockets.
fn check_length(folder: &Path) -> Result<(), Fault> {
    let (resource, _) = MEASURED[0];
    let socket = Dirs::new(Some(&folder.join(NODES[0])), None).serve_socket(resource);
    check_socket_path(&socket).map_err(|_| Fault::FolderTooLong {
        folder: folder.display().to_string(),
    })
}

fn check_space(folder: &Path, needed: u64) -> Result<(), Fault> {
    let stat = rustix::fs::statvfs(folder)
        .map_err(|errno| Fault::io(folder.display().to_string())(errno.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= needed {
        return Ok(());
    }
    Err(Fault::NoSpace {
        folder: folder.display().to_string(),
        free_mib: free >> 20,
        needed_mib: needed.div_ceil(1 << 20),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_removed_with_what_the_demo_put_there() {
        let dir = tempfile::tempdir().expect("dir");
        let wanted = dir.path().join("new");
        let folder = Folder::new(Some(&wanted)).expect("made");
        fs::write(wanted.join("file"), "x").expect("writes");
        assert!(matches!(
            Folder::new(Some(&wanted)),
            Err(Fault::FolderTaken { .. })
        ));
        folder.remove().expect("removes");
        assert!(!wanted.exists());

        // One that was there stays, empty.
        let folder = Folder::new(Some(dir.path())).expect("taken");
        fs::create_dir(dir.path().join("sub")).expect("makes");
        fs::write(dir.path().join("file"), "x").expect("writes");
        drop(folder);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
    }

    #[test]
    fn a_folder_too_deep_for_sockets_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().expect("dir");
        let deep = dir.path().join("x".repeat(90));
        fs::create_dir(&deep).expect("makes");
        let refused = Scene::set(&deep, 64 << 20);
        assert!(matches!(refused, Err(Fault::FolderTooLong { .. })));
        assert_eq!(fs::read_dir(&deep).expect("there").count(), 0);
        // As deep as it can be, the file is understood.
        let longest = 107 - "/alpha/r-a.serve.sock".len();
        let left = longest - dir.path().as_os_str().len() - 1;
        let deep = dir.path().join("y".repeat(left));
        fs::create_dir(&deep).expect("makes");
        let scene = Scene::set(&deep, 64 << 20).expect("set");
        crate::config::Config::load(&scene.config()).expect("reads");
    }

    #[test]
    fn the_configuration_is_understood() {
        let dir = tempfile::tempdir().expect("dir");
        let scene = Scene::set(dir.path(), 64 << 20).expect("set");
        let config = crate::config::Config::load(&scene.config()).expect("reads");
        for node in NODES {
            assert_eq!(config.resources_of(node).count(), 4);
        }
        assert!(scene.place(1, "r-b").is_some());
    }
}
