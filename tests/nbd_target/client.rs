//! A hand-written client that can do what a real one never would.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use lockstep::target::nbd::protocol::{
    ALLOCATION_CONTEXT, CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, CMD_WRITE, OPT_GO,
    OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, OPTION_MAGIC, OPTION_REPLY_MAGIC, REP_ACK,
    REPLY_ERROR, REPLY_FLAG_DONE, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};

use crate::harness::Place;

pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn inner(&mut self) -> &mut dyn ReadWrite {
        match self {
            Stream::Unix(stream) => stream,
            Stream::Tcp(stream) => stream,
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

pub struct Client {
    stream: Stream,
    pub structured: bool,
}

/// A reply: error number and data.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    pub kind: u16,
    pub data: Vec<u8>,
}

impl Client {
    pub fn connect(place: &Place) -> Client {
        let limit = Some(Duration::from_secs(20));
        let stream = match place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path).unwrap();
                stream.set_read_timeout(limit).unwrap();
                stream.set_write_timeout(limit).unwrap();
                Stream::Unix(stream)
            }
            Place::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port)).unwrap();
                stream.set_read_timeout(limit).unwrap();
                stream.set_write_timeout(limit).unwrap();
                stream.set_nodelay(true).unwrap();
                Stream::Tcp(stream)
            }
        };
        Client {
            stream,
            structured: false,
        }
    }

    /// Connects and gets past the greeting.
    pub fn greeted(place: &Place) -> Client {
        let mut client = Client::connect(place);
        assert_eq!(client.read(18), b"NBDMAGICIHAVEOPT\x00\x03");
        client.write(&(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES).to_be_bytes());
        client
    }

    /// Connects and chooses the export, without structured replies.
    pub fn simple(place: &Place) -> Client {
        let mut client = Client::greeted(place);
        let replies = client.option(OPT_GO, b"\x00\x00\x00\x02r0\x00\x00");
        assert_eq!(replies.last().unwrap().0, REP_ACK);
        client
    }

    /// The same with everything that the server has to offer.
    pub fn structured(place: &Place) -> Client {
        let mut client = Client::greeted(place);
        client.option(OPT_STRUCTURED_REPLY, b"");
        let mut query = b"\x00\x00\x00\x02r0\x00\x00\x00\x01\x00\x00\x00\x0f".to_vec();
        query.extend_from_slice(ALLOCATION_CONTEXT);
        assert_eq!(client.option(OPT_SET_META_CONTEXT, &query).len(), 2);
        let replies = client.option(OPT_GO, b"\x00\x00\x00\x02r0\x00\x00");
        assert_eq!(replies.last().unwrap().0, REP_ACK);
        client.structured = true;
        client
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.inner().write_all(bytes).unwrap();
    }

    pub fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.inner().read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.read(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.read(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.read(8).try_into().unwrap())
    }

    /// Whether the server hangs up after at most `most` further bytes.
    pub fn is_hung_up(&mut self, most: usize) -> bool {
        let mut bytes = Vec::new();
        let result = self
            .stream
            .inner()
            .take(most as u64 + 1)
            .read_to_end(&mut bytes);
        let reset = result.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
        reset || bytes.len() <= most
    }

    /// A second handle on the connection, for a thread that only writes.
    pub fn writer(&self) -> Box<dyn Write + Send> {
        match &self.stream {
            Stream::Unix(stream) => Box::new(stream.try_clone().unwrap()),
            Stream::Tcp(stream) => Box::new(stream.try_clone().unwrap()),
        }
    }

    /// Sends nothing more.
    pub fn close_write(&mut self) {
        match &self.stream {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write).unwrap(),
        }
    }

    /// Sends an option and returns the answers up to the last one.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        self.write(&bytes);
        let mut answers = Vec::new();
        loop {
            assert_eq!(self.u64(), OPTION_REPLY_MAGIC);
            assert_eq!(self.u32(), option);
            let (kind, length) = (self.u32(), self.u32());
            let data = self.read(length as usize);
            answers.push((kind, data));
            if kind == REP_ACK || kind >= 1 << 31 {
                return answers;
            }
        }
    }

    /// Sends a request, with a payload where it has one.
    pub fn send(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, payload: Payload) {
        let bytes = request(command, flags, cookie, offset, payload.length());
        self.write(&bytes);
        if let Payload::Data(data) = payload {
            assert_eq!(command, CMD_WRITE);
            self.write(data);
        }
    }

    /// Receives a reply; `data` is the length of a read that succeeds.
    pub fn reply(&mut self, data: usize) -> Reply {
        let magic = self.u32();
        if !self.structured {
            assert_eq!(magic, SIMPLE_REPLY_MAGIC);
            let (error, cookie) = (self.u32(), self.u64());
            let data = if error == 0 {
                self.read(data)
            } else {
                Vec::new()
            };
            let kind = 0;
            return Reply {
                cookie,
                error,
                kind,
                data,
            };
        }
        assert_eq!(magic, STRUCTURED_REPLY_MAGIC);
        assert_eq!(self.u16(), REPLY_FLAG_DONE);
        let (kind, cookie, length) = (self.u16(), self.u64(), self.u32());
        let mut data = self.read(length as usize);
        let mut error = 0;
        if kind == REPLY_ERROR {
            error = u32::from_be_bytes(data[..4].try_into().unwrap());
            data.drain(..6);
        }
        Reply {
            cookie,
            error,
            kind,
            data,
        }
    }

    /// Sends a request and expects this error number (0: success).
    pub fn call(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        payload: Payload,
        error: u32,
    ) -> Reply {
        let cookie = offset ^ 0xdead_beef;
        let length = payload.length() as usize;
        self.send(command, flags, cookie, offset, payload);
        let reply = self.reply(if command == 0 { length } else { 0 });
        assert_eq!((reply.cookie, reply.error), (cookie, error));
        reply
    }
}

#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// No payload, but this length.
    Length(u32),
    Data(&'a [u8]),
}

impl Payload<'_> {
    fn length(self) -> u32 {
        match self {
            Payload::Length(length) => length,
            Payload::Data(data) => data.len() as u32,
        }
    }
}

/// A request's header.
pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}
