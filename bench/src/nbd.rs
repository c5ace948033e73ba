//! A pipelined NBD client: simple replies, one connection over a Unix socket.
//!
//! Requests gather in `outgoing` and leave with one system call; replies are taken from a buffer
//! that one receive fills with as many as have arrived.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::drive::Lane;
use crate::error::BenchError;
use crate::plan::{Case, noise};

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
/// Fixed newstyle, and no padding of zeroes.
const CLIENT_FLAGS: u32 = 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const REPLY_HEADER: usize = 16;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;

/// Longest answer to an option that is believed.
const MAX_ANSWER: u32 = 16 << 10;

/// Longer than any reply may take: a pair that hangs ends the run.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to an export.
pub struct Nbd {
    path: PathBuf,
    incoming: BufReader<UnixStream>,
    outgoing: Vec<u8>,
    case: Case,
    payload: Vec<u8>,
    /// Where the data of reads goes.
    sink: Vec<u8>,
    /// Bytes that the export has.
    size: u64,
}

impl Nbd {
    /// Connects to `export` for the requests of `case`.
    pub fn connect(path: &Path, export: &str, case: Case) -> Result<Nbd, BenchError> {
        let stream = UnixStream::connect(path).map_err(BenchError::at(path))?;
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&stream, Some(PATIENCE)).map_err(BenchError::at(path))?;
        }
        let bs = case.bs as usize;
        let room = (bs + REPLY_HEADER) * case.iodepth as usize;
        let mut nbd = Nbd {
            path: path.to_owned(),
            incoming: BufReader::with_capacity(room.min(4 << 20), stream),
            outgoing: Vec::new(),
            case,
            payload: noise(bs),
            sink: vec![0; bs],
            size: 0,
        };
        nbd.size = nbd.negotiate(export)?;
        Ok(nbd)
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    fn negotiate(&mut self, export: &str) -> Result<u64, BenchError> {
        if &self.receive::<16>()? != GREETING {
            return Err(self.broken("greeting"));
        }
        self.receive::<2>()?;
        self.outgoing.extend(CLIENT_FLAGS.to_be_bytes());
        self.outgoing.extend(OPTION_MAGIC);
        self.outgoing.extend(OPT_GO.to_be_bytes());
        let name = export.len() as u32;
        // The name with its length, and no further questions.
        self.outgoing.extend((4 + name + 2).to_be_bytes());
        self.outgoing.extend(name.to_be_bytes());
        self.outgoing.extend(export.as_bytes());
        self.outgoing.extend([0, 0]);
        self.send()?;
        let mut size = None;
        loop {
            if u64::from_be_bytes(self.receive()?) != OPTION_REPLY_MAGIC {
                return Err(self.broken("magic of an option's answer"));
            }
            self.receive::<4>()?;
            let kind = u32::from_be_bytes(self.receive()?);
            let length = u32::from_be_bytes(self.receive()?);
            if length > MAX_ANSWER {
                return Err(self.broken("length of an option's answer"));
            }
            let mut data = vec![0; length as usize];
            self.fill(&mut data)?;
            match (kind, size) {
                (REP_INFO, _) => size = export_size(&data).or(size),
                (REP_ACK, Some(size)) => return Ok(size),
                _ => return Err(self.broken("the export was refused")),
            }
        }
    }

    fn receive<const N: usize>(&mut self) -> Result<[u8; N], BenchError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BenchError> {
        self.incoming
            .read_exact(bytes)
            .map_err(BenchError::at(&self.path))
    }

    fn send(&mut self) -> Result<(), BenchError> {
        self.incoming
            .get_mut()
            .write_all(&self.outgoing)
            .map_err(BenchError::at(&self.path))?;
        self.outgoing.clear();
        Ok(())
    }

    fn broken(&self, what: &'static str) -> BenchError {
        let path = self.path.clone();
        BenchError::Protocol { path, what }
    }

    fn reply(&mut self) -> Result<usize, BenchError> {
        if u32::from_be_bytes(self.receive()?) != REPLY_MAGIC {
            return Err(self.broken("magic of a reply"));
        }
        let errno = u32::from_be_bytes(self.receive()?) as i32;
        let slot = u64::from_be_bytes(self.receive()?);
        if errno != 0 {
            return Err(BenchError::Request { errno });
        }
        if slot >= u64::from(self.case.iodepth) {
            return Err(self.broken("cookie of a reply"));
        }
        if !self.case.rw.writes() {
            self.incoming
                .read_exact(&mut self.sink)
                .map_err(BenchError::at(&self.path))?;
        }
        Ok(slot as usize)
    }
}

/// The size in an answer that describes the export.
fn export_size(data: &[u8]) -> Option<u64> {
    let (kind, rest) = data.split_first_chunk::<2>()?;
    let (size, _flags) = rest.split_first_chunk::<8>()?;
    (u16::from_be_bytes(*kind) == INFO_EXPORT).then(|| u64::from_be_bytes(*size))
}

impl Lane for Nbd {
    fn queue(&mut self, slot: usize, offset: u64) -> Result<(), BenchError> {
        let writes = self.case.rw.writes();
        let command = if writes { CMD_WRITE } else { CMD_READ };
        self.outgoing.extend(REQUEST_MAGIC.to_be_bytes());
        self.outgoing.extend(0u16.to_be_bytes());
        self.outgoing.extend(command.to_be_bytes());
        self.outgoing.extend((slot as u64).to_be_bytes());
        self.outgoing.extend(offset.to_be_bytes());
        self.outgoing.extend(self.case.bs.to_be_bytes());
        if writes {
            self.outgoing.extend_from_slice(&self.payload);
        }
        Ok(())
    }

    fn take(&mut self) -> Result<usize, BenchError> {
        self.send()?;
        self.reply()
    }

    fn take_ready(&mut self) -> Result<Option<usize>, BenchError> {
        let data = if self.case.rw.writes() {
            0
        } else {
            self.sink.len()
        };
        if self.incoming.buffer().len() < REPLY_HEADER + data {
            return Ok(None);
        }
        self.reply().map(Some)
    }
}
