//! `dump-md`: what the metadata says, also when it is damaged.
//!
//! Reads only, and looks at every part by itself: a bad copy of the superblock is named with its
//! fault, a ring that proves nothing with the reason.

use std::fmt;

use serde::Serialize;

use super::layout::Placement;
use super::log::{self, LogRecovery};
use super::metadata::Copy;
use super::recover::{Medium, ReadAt, RecoverError, read_copies, read_ring, recover};
use super::superblock::{Contents, VERSION};
use crate::engine::LogTransaction;

/// Everything there is to say about a volume's metadata.
#[derive(Clone, Debug, Serialize)]
pub struct Dump {
    pub version: u32,
    pub primary: CopyDump,
    pub second: CopyDump,
    /// Why the metadata cannot be attached.
    #[serde(serialize_with = "as_text")]
    pub refused: Option<RecoverError>,
    /// What to do about that.
    pub help: Option<&'static str>,
    /// What the copy that counts says.
    pub contents: Option<ContentsDump>,
}

fn as_text<S: serde::Serializer>(
    why: &Option<RecoverError>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match why {
        Some(why) => serializer.collect_str(why),
        None => serializer.serialize_none(),
    }
}

/// One copy of the superblock.
#[derive(Clone, Debug, Serialize)]
pub struct CopyDump {
    pub offset: u64,
    pub sequence: Option<u64>,
    pub fault: Option<String>,
}

/// The metadata as an attach would take it.
#[derive(Clone, Debug, Serialize)]
pub struct ContentsDump {
    pub used_copy: &'static str,
    pub id: String,
    pub placement: &'static str,
    pub data_bytes: u64,
    pub usable_bytes: u64,
    pub logical_block: u32,
    pub max_peers: u8,
    pub log_offset: u64,
    pub bitmap_offset: u64,
    pub node_id: u8,
    pub agreed_bytes: u64,
    pub current: String,
    pub history: Vec<String>,
    pub term: String,
    pub flags: Vec<&'static str>,
    pub unflushed_boot: String,
    pub peers: Vec<PeerDump>,
    pub log: LogDump,
    /// Bytes that the bitmap of slot 0 marks as dirty, without what the log covers.
    pub dirty_bytes: u64,
    /// Groups of bitmap pages whose checksum is wrong; an attach takes them as all dirty.
    pub damaged_groups: Vec<u16>,
    pub unreadable_pages: u32,
}

/// One peer's record.
#[derive(Clone, Debug, Serialize)]
pub struct PeerDump {
    pub slot: usize,
    pub bitmap_base: String,
    pub flags: Vec<&'static str>,
    pub session: String,
    pub session_pending: String,
}

/// The activity log.
#[derive(Clone, Debug, Serialize)]
pub struct LogDump {
    /// Newest transaction; absent when the ring proves nothing.
    pub newest: Option<u64>,
    pub fault: Option<String>,
    /// Extents of 4 MiB that the log covers; empty with a fault, where all count as covered.
    pub extents: Vec<u32>,
}

/// Reads the metadata. Fails only where there is nothing to look at.
pub fn dump(disk: &mut impl ReadAt, medium: &Medium) -> Result<Dump, RecoverError> {
    let copies = read_copies(disk, medium)?;
    let places = medium.placement;
    let about = |offset: Option<u64>, copy: &Result<Contents, _>| CopyDump {
        offset: offset.unwrap_or(0),
        sequence: copy.as_ref().ok().map(|c| c.sequence),
        fault: copy.as_ref().err().map(super::CopyFault::to_string),
    };
    let primary = about(places.super_offset(), &copies.primary);
    let second = about(places.log_offset(), &copies.second);
    let (contents, refused) = match copies.choose(medium) {
        Ok(chosen) => (
            Some(describe(disk, medium, chosen.copy, &chosen.contents)?),
            None,
        ),
        Err(why) => (None, Some(why)),
    };
    Ok(Dump {
        version: VERSION,
        primary,
        second,
        help: refused.as_ref().map(RecoverError::help),
        refused,
        contents,
    })
}

fn describe(
    disk: &mut impl ReadAt,
    medium: &Medium,
    copy: Copy,
    contents: &Contents,
) -> Result<ContentsDump, RecoverError> {
    let layout = &contents.layout;
    let s = &contents.superblock;
    let ring = read_ring(disk, contents.id, layout);
    let found = recover(disk, medium)?;
    let dirty: u64 = found
        .image
        .bitmap
        .iter()
        .map(|w| u64::from(w.count_ones()))
        .sum();
    Ok(ContentsDump {
        used_copy: match copy {
            Copy::Primary => "primary",
            Copy::Second => "second",
        },
        id: hex(contents.id),
        placement: match layout.placement() {
            Placement::Internal { .. } => "internal",
            Placement::External { .. } => "external",
        },
        data_bytes: layout.placement().data_bytes(),
        usable_bytes: layout.usable(),
        logical_block: layout.logical_block(),
        max_peers: layout.max_peers(),
        log_offset: layout.second_offset(),
        bitmap_offset: layout.bitmap_range().start,
        node_id: s.node.0,
        agreed_bytes: s.agreed_size,
        current: hex(s.current.0),
        history: s.history.iter().map(|g| hex(g.0)).collect(),
        term: s.term.to_string(),
        flags: set(&[
            ("primary", s.primary),
            ("inconsistent", s.inconsistent),
            ("outdated", s.outdated),
            ("unflushed", s.unflushed),
        ]),
        unflushed_boot: hex(s.unflushed_boot),
        peers: peers(contents),
        log: log_dump(log::recover(&ring, contents.log_number)),
        dirty_bytes: dirty * super::layout::BYTES_PER_BIT,
        damaged_groups: found.damage.groups,
        unreadable_pages: found.damage.unreadable_pages,
    })
}

fn peers(contents: &Contents) -> Vec<PeerDump> {
    let records = contents.superblock.peers.iter().enumerate();
    records
        .map(|(slot, p)| PeerDump {
            slot,
            bitmap_base: hex(p.base.0),
            flags: set(&[
                ("known", p.known),
                ("outdated", p.outdated),
                ("want-full", p.want_full),
            ]),
            session: hex(p.session.0),
            session_pending: hex(p.session_pending.0),
        })
        .collect()
}

fn log_dump(found: LogRecovery) -> LogDump {
    match found {
        LogRecovery::Incomplete { fault, .. } => LogDump {
            newest: None,
            fault: Some(fault.to_string()),
            extents: Vec::new(),
        },
        LogRecovery::Complete { newest, table } => {
            let mut extents: Vec<u32> = table;
            extents.retain(|e| *e != LogTransaction::FREE);
            extents.sort_unstable();
            LogDump {
                newest: Some(newest),
                fault: None,
                extents,
            }
        }
    }
}

fn hex(value: u64) -> String {
    format!("{value:016X}")
}

fn set(flags: &[(&'static str, bool)]) -> Vec<&'static str> {
    let set = flags.iter().filter(|(_, on)| *on);
    set.map(|(name, _)| *name).collect()
}

impl fmt::Display for CopyDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {}: ", self.offset)?;
        match (&self.fault, self.sequence) {
            (Some(fault), _) => write!(f, "BAD: {fault}"),
            (None, sequence) => write!(f, "good, sequence {}", sequence.unwrap_or(0)),
        }
    }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "format version    {}", self.version)?;
        writeln!(f, "primary copy      {}", self.primary)?;
        writeln!(f, "second copy       {}", self.second)?;
        match (&self.contents, &self.refused) {
            (Some(contents), _) => contents.fmt(f),
            (None, Some(why)) => writeln!(f, "cannot be attached: {why}"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Display for ContentsDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "used copy         {}", self.used_copy)?;
        writeln!(f, "identity          {}", self.id)?;
        writeln!(f, "placement         {}", self.placement)?;
        writeln!(f, "data device       {} bytes", self.data_bytes)?;
        writeln!(f, "usable            {} bytes", self.usable_bytes)?;
        writeln!(f, "logical block     {} bytes", self.logical_block)?;
        writeln!(f, "log offset        {}", self.log_offset)?;
        writeln!(f, "bitmap offset     {}", self.bitmap_offset)?;
        writeln!(f, "node-id           {}", self.node_id)?;
        writeln!(f, "agreed size       {} bytes", self.agreed_bytes)?;
        writeln!(f, "current           {}", self.current)?;
        writeln!(f, "history           {}", self.history.join(" "))?;
        writeln!(f, "term              {}", self.term)?;
        writeln!(f, "flags             {}", self.flags.join(" "))?;
        writeln!(f, "unflushed boot    {}", self.unflushed_boot)?;
        for p in &self.peers {
            writeln!(
                f,
                "peer slot {:<2}      bitmap {} session {} pending {} {}",
                p.slot,
                p.bitmap_base,
                p.session,
                p.session_pending,
                p.flags.join(" ")
            )?;
        }
        match (&self.log.fault, self.log.newest) {
            (Some(fault), _) => writeln!(f, "log               BAD, all extents count: {fault}")?,
            (None, newest) => writeln!(
                f,
                "log               transaction {}, {} extents: {:?}",
                newest.unwrap_or(0),
                self.log.extents.len(),
                self.log.extents
            )?,
        }
        writeln!(f, "dirty             {} bytes", self.dirty_bytes)?;
        if !self.damaged_groups.is_empty() || self.unreadable_pages > 0 {
            writeln!(
                f,
                "bitmap            BAD: groups {:?}, {} unreadable pages",
                self.damaged_groups, self.unreadable_pages
            )?;
        }
        Ok(())
    }
}
