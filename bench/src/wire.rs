//! The network's own limit: a block to a thread over TCP, and a short answer back.
//!
//! Both ends sleep in `recv`, as the product does. The answer has the size of an
//! acknowledgement.

use std::collections::VecDeque;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::drive::Lane;
use crate::error::BenchError;
use crate::plan::{Case, noise};

const ANSWER: usize = 32;

const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to an answering thread, which ends with it.
pub struct Wire {
    incoming: BufReader<TcpStream>,
    outgoing: Vec<u8>,
    block: Vec<u8>,
    /// Slots of the blocks on the way: they are answered in order.
    sent: VecDeque<usize>,
    answering: Option<JoinHandle<()>>,
}

impl Wire {
    pub fn connect(case: Case) -> Result<Wire, BenchError> {
        let failed = || BenchError::io("a loopback connection");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
        let place = listener.local_addr().map_err(failed())?;
        let ours = TcpStream::connect(place).map_err(failed())?;
        let (theirs, _) = listener.accept().map_err(failed())?;
        for stream in [&ours, &theirs] {
            stream.set_nodelay(true).map_err(failed())?;
            stream.set_read_timeout(Some(PATIENCE)).map_err(failed())?;
        }
        let bs = case.bs as usize;
        let answering = std::thread::spawn(move || answer(theirs, bs));
        Ok(Wire {
            incoming: BufReader::new(ours),
            outgoing: Vec::new(),
            block: noise(bs),
            sent: VecDeque::new(),
            answering: Some(answering),
        })
    }

    fn receive(&mut self) -> Result<usize, BenchError> {
        let mut bytes = [0; ANSWER];
        self.incoming
            .read_exact(&mut bytes)
            .map_err(BenchError::io("a loopback connection"))?;
        self.sent.pop_front().ok_or_else(|| BenchError::Io {
            what: "a loopback connection".into(),
            source: ErrorKind::InvalidData.into(),
        })
    }
}

/// Answers each block of `bs` bytes until the connection ends.
fn answer(mut stream: TcpStream, bs: usize) {
    let mut buffer = vec![0; (4 * bs).max(64 << 10)];
    let mut received = 0;
    // An error here is one at the other end too, which reports it.
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        received += count;
        let answers = vec![0; received / bs * ANSWER];
        received %= bs;
        if stream.write_all(&answers).is_err() {
            return;
        }
    }
}

impl Lane for Wire {
    fn queue(&mut self, slot: usize, _offset: u64) -> Result<(), BenchError> {
        self.sent.push_back(slot);
        self.outgoing.extend_from_slice(&self.block);
        Ok(())
    }

    fn take(&mut self) -> Result<usize, BenchError> {
        self.incoming
            .get_mut()
            .write_all(&self.outgoing)
            .map_err(BenchError::io("a loopback connection"))?;
        self.outgoing.clear();
        self.receive()
    }

    fn take_ready(&mut self) -> Result<Option<usize>, BenchError> {
        if self.incoming.buffer().len() < ANSWER {
            return Ok(None);
        }
        self.receive().map(Some)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Ends the thread's read.
        let _ = self.incoming.get_ref().shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.answering.take() {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}
