//! The disk edge on real files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::create::{Contents, CreateError, CreateOptions, CreateReport, Creation};
use super::device::{Disk, DiskKind, OpenError};
use super::dump::dump;
use super::*;
use crate::engine::{LogTransaction, MetaOp, NodeId};

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        Place {
            dir: tempfile::Builder::new().prefix("store-").tempdir().unwrap(),
        }
    }

    /// A sparse file.
    fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

fn create_md(options: &CreateOptions) -> Result<CreateReport, CreateError> {
    Creation::prepare(options)?.write()
}

fn options(data: &Path) -> CreateOptions {
    CreateOptions {
        data: data.to_path_buf(),
        meta: None,
        indexed: false,
        node: NodeId(1),
        max_peers: 1,
        force: false,
    }
}

fn medium_of(disk: &Disk) -> Medium {
    Medium {
        placement: Placement::Internal {
            device_bytes: disk.traits().bytes,
        },
        logical_block: disk.traits().logical_block,
        volatile_cache: disk.traits().volatile_cache,
        discard: disk.traits().discard_zeroes,
    }
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn created_metadata_is_attached_written_and_attached_again() {
    let place = Place::new();
    let path = place.file("disk", 64 << 20);
    let report = create_md(&options(&path)).unwrap();
    assert_eq!(report.usable, (64 << 20) - 40 * 1024);
    assert_eq!(report.metadata_bytes, 40 * 1024);
    let mut disk = Disk::open(&path).unwrap();
    assert_eq!(disk.traits().kind, DiskKind::File);
    let medium = medium_of(&disk);
    let mut found = recover(&mut disk, &medium).unwrap();
    let mut page = vec![0; 4096].into_boxed_slice();
    page[7] = 0x80;
    let table = vec![3, LogTransaction::FREE, 5];
    let ops = [
        MetaOp::Log(LogTransaction {
            changes: vec![],
            table: table.clone().into(),
        }),
        MetaOp::Bitmap {
            slot: 0,
            pages: vec![(0, page)],
        },
    ];
    for op in &ops {
        let steps = found.metadata.plan(op).unwrap();
        disk.execute(&steps).unwrap();
    }
    let found = recover(&mut disk, &medium).unwrap();
    assert_eq!(found.damage, Damage::default());
    assert_eq!(found.image.log, table);
    assert_eq!(found.image.bitmap[0], 1 << 63);
    let text = dump(&mut disk, &medium).unwrap().to_string();
    assert!(text.contains("2 extents: [3, 5]"), "{text}");
    assert!(text.contains("dirty             4096 bytes"), "{text}");
}

/// A sparse 15 TiB file has 480 MiB of bitmap; none of it may be read or touched in memory.
#[test]
fn huge_sparse_files_attach_at_once() {
    let place = Place::new();
    let path = place.dir.path().join("huge");
    let created = File::create(&path).and_then(|f| f.set_len(15 << 40));
    if let Err(why) = created {
        println!("skipped: this file system cannot hold a sparse file of 15 TiB: {why}");
        return;
    }
    let start = Instant::now();
    create_md(&options(&path)).unwrap();
    let mut disk = Disk::open(&path).unwrap();
    let medium = medium_of(&disk);
    let found = recover(&mut disk, &medium).unwrap();
    let took = start.elapsed();
    println!("created and attached in {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(found.damage, Damage::default());
    let bits = found.image.capacity.div_ceil(4096);
    assert_eq!(found.image.bitmap.len() as u64, bits.div_ceil(64));
    assert!(bits > (15 << 40) / 4096 - (1 << 20));
}

#[test]
fn disks_are_exclusive() {
    let place = Place::new();
    let path = place.file("disk", 1 << 20);
    create_md(&options(&path)).unwrap();
    let held = Disk::open(&path).unwrap();
    assert!(matches!(Disk::open(&path), Err(OpenError::Locked { .. })));
    let again = create_md(&options(&path));
    assert!(matches!(
        again,
        Err(CreateError::Open(OpenError::Locked { .. }))
    ));
    let mut shared = Disk::open_shared(&path).unwrap();
    let medium = medium_of(&shared);
    assert!(dump(&mut shared, &medium).unwrap().contents.is_some());
    // The right goes with the descriptor, wherever it is, and ends with its last copy.
    let traits = *held.traits();
    let fd = held.into_fd();
    let passed = Disk::from_fd(fd.try_clone().unwrap()).unwrap();
    assert_eq!(*passed.traits(), traits);
    drop(passed);
    let copy = fd.try_clone().unwrap();
    drop(fd);
    assert!(matches!(Disk::open(&path), Err(OpenError::Locked { .. })));
    drop(copy);
    assert!(Disk::open(&path).is_ok());
}

#[test]
fn unsuitable_disks_are_refused() {
    let place = Place::new();
    let dir = Disk::open(place.dir.path());
    assert!(matches!(dir, Err(OpenError::NotADisk { .. })));
    let none = Disk::open(&place.dir.path().join("none"));
    assert!(matches!(none, Err(OpenError::Io { .. })));
    for bytes in [0, 512, 36 * 1024, 40 * 1024] {
        let path = place.file("small", bytes);
        let small = create_md(&options(&path));
        assert!(matches!(small, Err(CreateError::Layout { .. })), "{bytes}");
        assert!(std::fs::read(&path).unwrap().iter().all(|b| *b == 0));
    }
}

#[test]
fn external_metadata_leaves_the_data_alone() {
    let place = Place::new();
    let data = place.file("data", 10 << 20);
    let meta = place.file("meta", 1 << 20);
    patch(&data, 5 << 20, b"payload");
    let before = std::fs::read(&data).unwrap();
    let external = CreateOptions {
        meta: Some(meta.clone()),
        max_peers: 15,
        ..options(&data)
    };
    let report = create_md(&external).unwrap();
    assert_eq!((report.usable, report.metadata_offset), (10 << 20, 0));
    assert!(std::fs::read(&data).unwrap() == before);
    let mut disk = Disk::open(&meta).unwrap();
    let placement = Placement::External {
        data_bytes: 10 << 20,
        meta_bytes: 1 << 20,
    };
    let medium = Medium {
        placement,
        ..medium_of(&disk)
    };
    assert!(recover(&mut disk, &medium).is_ok());
    // A data device of another size is noticed.
    let grown = Placement::External {
        data_bytes: 11 << 20,
        meta_bytes: 1 << 20,
    };
    let medium = Medium {
        placement: grown,
        ..medium
    };
    let refused = recover(&mut disk, &medium);
    assert!(matches!(
        refused,
        Err(RecoverError::Refused {
            fault: CopyFault::Resized { .. },
            ..
        })
    ));
}

#[test]
fn metadata_does_not_reach_into_the_next_index() {
    let place = Place::new();
    let data = place.file("data", 300 << 30);
    let meta = place.file("meta", 256 << 20);
    let options = |indexed, max_peers| CreateOptions {
        meta: Some(meta.clone()),
        indexed,
        max_peers,
        ..options(&data)
    };
    let refused = Creation::prepare(&options(true, 15)).unwrap_err();
    let CreateError::Layout {
        source: LayoutError::IndexTooSmall { needed },
        ..
    } = refused
    else {
        panic!("{refused}");
    };
    // 15 bitmaps of a bit for each 4 KiB, the log, and the superblock.
    assert_eq!(needed, 15 * (300 << 30) / 32768 + 36864);
    assert!(Creation::prepare(&options(true, 13)).is_ok());
    assert!(Creation::prepare(&options(false, 15)).is_ok());
}

/// What other software leaves on a disk of 1 MiB, and what it is called.
const FOREIGN: &[(u64, &[u8], &str)] = &[
    (0x438, &[0x53, 0xef], "ext2"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (3, b"NTFS    ", "NTFS"),
    (0x52, b"FAT32   ", "FAT"),
    (0x218, b"LVM2 001", "LVM"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (4086, b"SWAPSPACE2", "swap"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "RAID member (1.2)"),
    (
        (1 << 20) - 8192,
        &[0xfc, 0x4e, 0x2b, 0xa9],
        "RAID member (1.0)",
    ),
    (
        (1 << 20) - 65536,
        &[0xfc, 0x4e, 0x2b, 0xa9],
        "RAID member (0.90)",
    ),
    (512, b"EFI PART", "GPT"),
    (446, &[0x80, 0, 0, 0, 0x83], "MBR"),
    (
        (128 << 10) + 1024,
        &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0],
        "ZFS",
    ),
    ((1 << 20) - 4036, &[0x83, 0x74, 0x02, 0x6b], "DRBD 8"),
    ((1 << 20) - 4036, &[0x83, 0x74, 0x02, 0x6d], "DRBD 9"),
];

#[test]
fn foreign_data_is_named_and_kept() {
    let place = Place::new();
    for (offset, bytes, name) in FOREIGN {
        let path = place.file("foreign", 1 << 20);
        patch(&path, *offset, bytes);
        patch(&path, 510, &[0x55, 0xaa]);
        let before = std::fs::read(&path).unwrap();
        let refused = create_md(&options(&path));
        let Err(CreateError::Signature {
            signatures,
            contents,
            ..
        }) = refused
        else {
            panic!("{name} was not found");
        };
        let usable = Some((1 << 20) - 40 * 1024);
        assert_eq!(contents, Contents::Data { usable });
        assert!(
            signatures.iter().any(|s| s.name.contains(name)),
            "{name}: {signatures:?}"
        );
        assert!(std::fs::read(&path).unwrap() == before, "{name}");
        let forced = CreateOptions {
            force: true,
            ..options(&path)
        };
        assert_eq!(create_md(&forced).unwrap().forced, signatures);
    }
}

#[test]
fn existing_metadata_is_kept_unless_forced() {
    let place = Place::new();
    let path = place.file("disk", 1 << 20);
    create_md(&options(&path)).unwrap();
    let again = create_md(&options(&path));
    let Err(CreateError::Signature { signatures, .. }) = again else {
        panic!("existing metadata was not found");
    };
    assert!(signatures.iter().all(|s| s.name.contains("Lockstep")));
    let forced = CreateOptions {
        force: true,
        max_peers: 3,
        ..options(&path)
    };
    create_md(&forced).unwrap();
    let mut disk = Disk::open(&path).unwrap();
    let medium = medium_of(&disk);
    let found = recover(&mut disk, &medium).unwrap();
    assert_eq!(found.image.superblock.peers.len(), 3);
}

#[test]
fn zeroing_keeps_holes_and_clears_the_rest() {
    let place = Place::new();
    let path = place.file("disk", 8 << 20);
    patch(&path, 1 << 20, &[0xaa; 8192]);
    patch(&path, 6 << 20, &[0xbb; 8192]);
    let mut disk = Disk::open(&path).unwrap();
    disk.zero(4096..(6 << 20) + 4096).unwrap();
    drop(disk);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes[..(6 << 20) + 4096].iter().all(|b| *b == 0));
    assert!(bytes[(6 << 20) + 4096..][..4096].iter().all(|b| *b == 0xbb));
    let stat = rustix::fs::stat(&path).unwrap();
    assert!(stat.st_blocks * 512 < 1 << 20, "holes were filled");
}

#[test]
fn dump_tells_what_is_damaged() {
    let place = Place::new();
    let path = place.file("disk", 1 << 20);
    create_md(&options(&path)).unwrap();
    patch(&path, (1 << 20) - 4096 + 100, &[0xff; 8]);
    patch(&path, (1 << 20) - 12288 + 100, &[0xee; 8]);
    patch(&path, (1 << 20) - 40960, &[0x11]);
    let mut disk = Disk::open_shared(&path).unwrap();
    let medium = medium_of(&disk);
    let found = dump(&mut disk, &medium).unwrap();
    assert!(found.primary.fault.is_some() && found.second.fault.is_none());
    let text = found.to_string();
    for part in [
        "BAD: damaged",
        "used copy         second",
        "BAD, all extents",
        "BAD: groups [0]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["contents"]["used_copy"], "second");
    patch(&path, (1 << 20) - 36864 + 100, &[0xff; 8]);
    let found = dump(&mut disk, &medium).unwrap();
    assert!(found.contents.is_none());
    assert!(found.to_string().contains("cannot be attached"));
}
