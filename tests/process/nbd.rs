//! A small NBD client that reports errors instead of failing the test: servers are killed here.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use lockstep::target::nbd::protocol::{
    CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, CMD_FLUSH, CMD_READ, CMD_WRITE, OPT_GO, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, REP_ACK, REP_INFO, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
};

/// Longer than any wait that the product promises to bound.
const LIMIT: Duration = Duration::from_secs(60);

/// One connection to an export.
pub struct Nbd {
    stream: UnixStream,
    cookie: u64,
    pub size: u64,
}

fn wrong(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

impl Nbd {
    /// Connects to the export `r0`; an error when the server refuses.
    pub fn connect(path: &Path) -> io::Result<Nbd> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut nbd = Nbd {
            stream,
            cookie: 0,
            size: 0,
        };
        let mut greeting = [0; 18];
        nbd.stream.read_exact(&mut greeting)?;
        let flags = CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES;
        nbd.stream.write_all(&flags.to_be_bytes())?;
        let name = b"\x00\x00\x00\x02r0\x00\x00";
        let mut option = OPTION_MAGIC.to_be_bytes().to_vec();
        option.extend(OPT_GO.to_be_bytes());
        option.extend((name.len() as u32).to_be_bytes());
        option.extend_from_slice(name);
        nbd.stream.write_all(&option)?;
        loop {
            if nbd.u64()? != OPTION_REPLY_MAGIC {
                return Err(wrong("not an option reply"));
            }
            let (_, kind, length) = (nbd.u32()?, nbd.u32()?, nbd.u32()?);
            let mut data = vec![0; length as usize];
            nbd.stream.read_exact(&mut data)?;
            match kind {
                REP_ACK => return Ok(nbd),
                REP_INFO if data.starts_with(&[0, 0]) && data.len() >= 10 => {
                    nbd.size = u64::from_be_bytes(data[2..10].try_into().expect("eight"));
                }
                REP_INFO => {}
                error => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Err(io::Error::new(
                        io::ErrorKind::PermissionDenied,
                        format!("{error:#x}: {text}"),
                    ));
                }
            }
        }
    }

    /// Connects as soon as the server lets it.
    pub fn patiently(path: &Path) -> Nbd {
        let begin = Instant::now();
        loop {
            match Nbd::connect(path) {
                Ok(nbd) => return nbd,
                Err(error) => assert!(begin.elapsed() < crate::node::PATIENCE, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(CMD_WRITE, offset, data.len() as u32, data)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.call(CMD_FLUSH, 0, 0, &[])
    }

    pub fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.call(CMD_READ, offset, length as u32, &[])?;
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    fn call(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes)?;
        let (magic, error, cookie) = (self.u32()?, self.u32()?, self.u64()?);
        if magic != SIMPLE_REPLY_MAGIC || cookie != self.cookie {
            return Err(wrong("not the reply"));
        }
        match error {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno as i32)),
        }
    }

    fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.stream.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}
