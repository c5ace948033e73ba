//! A small blocking NBD client: fixed newstyle over a Unix socket, one request at a time.
//!
//! Enough of the protocol to read, write and flush an export, with simple replies. It exists so
//! that the demo needs no other program, not as a client for anything else.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use crate::target::nbd::protocol::{
    CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, CMD_DISC, CMD_FLUSH, CMD_READ, CMD_WRITE,
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC, Greeting, INFO_EXPORT, MAX_STRING, OPT_GO,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionHeader, OptionReply, REP_ACK, REP_INFO, REQUEST_MAGIC,
    RequestHeader, SIMPLE_REPLY_MAGIC, SimpleReply,
};
use zerocopy::{FromBytes, IntoBytes};

/// A server that says nothing for so long has lost the request: longer than any time-out between
/// the nodes, after which the write would have been completed or failed.
const SILENCE: Duration = Duration::from_secs(20);

/// Why a request has no result.
#[derive(Debug, Error)]
pub enum NbdError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the server breaks the NBD protocol: {0}")]
    Protocol(&'static str),
    #[error("the server refuses the export (NBD reply {kind:#x}): {message}")]
    Export { kind: u32, message: String },
    #[error("the server fails the request with error {0}")]
    Request(u32),
}

/// A connection in transmission.
pub struct NbdClient {
    stream: UnixStream,
    /// Bytes of the export.
    size: u64,
    cookie: u64,
}

impl NbdClient {
    /// Connects to the server at `socket` and chooses `export`.
    pub fn connect(socket: &Path, export: &str) -> Result<NbdClient, NbdError> {
        NbdClient::over(UnixStream::connect(socket)?, export)
    }

    fn over(stream: UnixStream, export: &str) -> Result<NbdClient, NbdError> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let mut client = NbdClient {
            stream,
            size: 0,
            cookie: 0,
        };
        client.greet()?;
        client.go(export)?;
        Ok(client)
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), NbdError> {
        let length = length(data)?;
        self.request(CMD_READ, offset, length, &[])?;
        self.stream.read_exact(data)?;
        Ok(())
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        let length = length(data)?;
        self.request(CMD_WRITE, offset, length, data)
    }

    /// Returns when everything acknowledged before is stable.
    pub fn flush(&mut self) -> Result<(), NbdError> {
        self.request(CMD_FLUSH, 0, 0, &[])
    }

    fn greet(&mut self) -> Result<(), NbdError> {
        let greeting: Greeting = self.take()?;
        let magics = (greeting.magic.get(), greeting.option_magic.get());
        if magics != (GREETING_MAGIC, OPTION_MAGIC) {
            return Err(NbdError::Protocol("no NBD greeting"));
        }
        let needed = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES;
        if greeting.flags.get() & needed != needed {
            return Err(NbdError::Protocol("the handshake is not fixed newstyle"));
        }
        let flags = CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES;
        self.stream.write_all(&flags.to_be_bytes())?;
        Ok(())
    }

    /// Chooses the export and learns its size.
    fn go(&mut self, export: &str) -> Result<(), NbdError> {
        let name = export.as_bytes();
        let length = u32::try_from(name.len()).map_err(|_| NbdError::Protocol("name too long"))?;
        let header = OptionHeader {
            magic: OPTION_MAGIC.into(),
            option: OPT_GO.into(),
            // The name with its length, and that no information is asked for in particular.
            length: (length + 6).into(),
        };
        let mut message = header.as_bytes().to_vec();
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(name);
        message.extend_from_slice(&0_u16.to_be_bytes());
        self.stream.write_all(&message)?;
        loop {
            let reply: OptionReply = self.take()?;
            if reply.magic.get() != OPTION_REPLY_MAGIC || reply.option.get() != OPT_GO {
                return Err(NbdError::Protocol("no answer to the option"));
            }
            let length = reply.length.get() as usize;
            if length > MAX_STRING {
                return Err(NbdError::Protocol("an answer that is too long"));
            }
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body)?;
            match reply.kind.get() {
                REP_ACK => return Ok(()),
                REP_INFO => self.learn(&body)?,
                kind => {
                    let message = String::from_utf8_lossy(&body).into_owned();
                    return Err(NbdError::Export { kind, message });
                }
            }
        }
    }

    fn learn(&mut self, info: &[u8]) -> Result<(), NbdError> {
        let Some((kind, rest)) = info.split_first_chunk() else {
            return Err(NbdError::Protocol("information without a kind"));
        };
        if u16::from_be_bytes(*kind) != INFO_EXPORT {
            return Ok(());
        }
        let Some(size) = rest.first_chunk() else {
            return Err(NbdError::Protocol("export information without a size"));
        };
        self.size = u64::from_be_bytes(*size);
        Ok(())
    }

    /// Sends a request and waits until the server has done it. Data that was read follows.
    fn request(
        &mut self,
        command: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> Result<(), NbdError> {
        self.cookie += 1;
        let header = RequestHeader {
            magic: REQUEST_MAGIC.into(),
            flags: 0.into(),
            command: command.into(),
            cookie: self.cookie.into(),
            offset: offset.into(),
            length: length.into(),
        };
        // One system call for header and payload.
        let mut message = Vec::with_capacity(size_of::<RequestHeader>() + payload.len());
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(payload);
        self.stream.write_all(&message)?;
        let reply: SimpleReply = self.take()?;
        if reply.magic.get() != SIMPLE_REPLY_MAGIC || reply.cookie.get() != self.cookie {
            return Err(NbdError::Protocol("no answer to the request"));
        }
        match reply.error.get() {
            0 => Ok(()),
            error => Err(NbdError::Request(error)),
        }
    }

    /// Receives one wire struct.
    fn take<T: FromBytes + IntoBytes>(&mut self) -> Result<T, NbdError> {
        let mut value = T::new_zeroed();
        self.stream.read_exact(value.as_mut_bytes())?;
        Ok(value)
    }
}

impl Drop for NbdClient {
    /// Says goodbye, so that the server does not log a lost client.
    fn drop(&mut self) {
        let header = RequestHeader {
            magic: REQUEST_MAGIC.into(),
            flags: 0.into(),
            command: CMD_DISC.into(),
            cookie: 0.into(),
            offset: 0.into(),
            length: 0.into(),
        };
        // The server may be gone.
        let _ = self.stream.write_all(header.as_bytes());
    }
}

fn length(data: &[u8]) -> Result<u32, NbdError> {
    u32::try_from(data.len()).map_err(|_| NbdError::Protocol("a request beyond 4 GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::nbd::protocol::REP_ERR_UNKNOWN;

    fn greeting(flags: u16) -> Vec<u8> {
        let greeting = Greeting {
            magic: GREETING_MAGIC.into(),
            option_magic: OPTION_MAGIC.into(),
            flags: flags.into(),
        };
        greeting.as_bytes().to_vec()
    }

    fn answer(kind: u32, body: &[u8]) -> Vec<u8> {
        let reply = OptionReply {
            magic: OPTION_REPLY_MAGIC.into(),
            option: OPT_GO.into(),
            kind: kind.into(),
            length: (body.len() as u32).into(),
        };
        [reply.as_bytes(), body].concat()
    }

    fn reply(error: u32, cookie: u64) -> Vec<u8> {
        let reply = SimpleReply {
            magic: SIMPLE_REPLY_MAGIC.into(),
            error: error.into(),
            cookie: cookie.into(),
        };
        reply.as_bytes().to_vec()
    }

    /// What a server of an export of 1 MiB says until transmission begins.
    fn served() -> Vec<u8> {
        let mut info = INFO_EXPORT.to_be_bytes().to_vec();
        info.extend_from_slice(&(1_u64 << 20).to_be_bytes());
        info.extend_from_slice(&1_u16.to_be_bytes());
        // Information that was not asked for is skipped.
        let other = answer(REP_INFO, &[0, 3, 0, 0, 0, 1]);
        let info = answer(REP_INFO, &info);
        [greeting(3), other, info, answer(REP_ACK, b"")].concat()
    }

    /// A client whose server says `bytes` and no more. The server's end is returned to stay open.
    fn client(bytes: &[u8]) -> (Result<NbdClient, NbdError>, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        theirs.write_all(bytes).expect("fits the socket");
        theirs.shutdown(std::net::Shutdown::Write).expect("shuts");
        (NbdClient::over(ours, "r0"), theirs)
    }

    #[test]
    fn requests_are_answered_in_order() {
        let bytes = [
            served(),
            reply(0, 1),
            reply(0, 2),
            vec![7; 512],
            reply(5, 3),
        ]
        .concat();
        let (client, mut server) = client(&bytes);
        let mut client = client.expect("connects");
        assert_eq!(client.size(), 1 << 20);
        client.write(4096, &[1; 512]).expect("written");
        let mut data = [0; 512];
        client.read(0, &mut data).expect("read");
        assert_eq!(data, [7; 512]);
        assert!(matches!(client.flush(), Err(NbdError::Request(5))));
        assert!(matches!(client.flush(), Err(NbdError::Io(_))));
        drop(client);
        let mut sent = Vec::new();
        server.read_to_end(&mut sent).expect("reads");
        // Flags and GO, then a write with its data, a read, two flushes and the goodbye.
        assert_eq!(sent.len(), 4 + (16 + 8) + 5 * 28 + 512);
    }

    #[test]
    fn servers_that_refuse_or_talk_nonsense() {
        let refused = answer(REP_ERR_UNKNOWN, b"not primary");
        let mut wrong_magic = greeting(3);
        wrong_magic[0] ^= 1;
        let mut endless = answer(REP_INFO, b"");
        let length = endless.len() - 4;
        endless[length..].copy_from_slice(&u32::MAX.to_be_bytes());
        let cases = [
            (wrong_magic, "no NBD greeting"),
            (greeting(0), "not fixed newstyle"),
            ([greeting(3), refused].concat(), "not primary"),
            ([greeting(3), endless].concat(), "too long"),
            (
                [greeting(3), answer(REP_INFO, b"")].concat(),
                "without a kind",
            ),
            (
                [greeting(3), vec![0; 20]].concat(),
                "no answer to the option",
            ),
            (greeting(3), "fill whole buffer"),
        ];
        for (bytes, reason) in cases {
            let (client, _server) = client(&bytes);
            let error = client.err().expect(reason).to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
        let (client, _server) = client(&[served(), reply(0, 9)].concat());
        let mut client = client.expect("connects");
        assert!(matches!(client.flush(), Err(NbdError::Protocol(_))));
    }
}
