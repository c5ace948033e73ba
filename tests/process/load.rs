//! A writer that remembers what was acknowledged and survives the death of its server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::nbd::Nbd;
use crate::node::wait_until;
use crate::pair::random;

/// Bytes of one write.
pub const BLOCK: usize = 4096;
/// Between two tries to reach the server.
const RETRY: Duration = Duration::from_millis(10);

/// What a block may hold: by offset, the last acknowledged write and one that may have happened.
#[derive(Debug, Default)]
pub struct History {
    acked: BTreeMap<u64, u64>,
    open: Option<(u64, u64)>,
    /// Longest time that one write took, reconnections included.
    pub slowest: Duration,
    pub reconnects: u32,
}

/// A running writer.
pub struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<History>,
}

/// The block that write `number` puts at `offset`.
fn block(number: u64, offset: u64) -> Vec<u8> {
    let mut mark = number.to_le_bytes().to_vec();
    mark.extend(offset.to_le_bytes());
    mark.repeat(BLOCK / mark.len())
}

impl Load {
    /// Writes random blocks of the first `span` bytes to the server at `socket`, one at a time.
    pub fn start(socket: &Path, span: u64, seed: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            socket: socket.to_owned(),
            nbd: Some(Nbd::patiently(socket)),
            stop: Arc::clone(&stop),
            history: History::default(),
        };
        let counter = Arc::clone(&count);
        let thread = std::thread::spawn(move || writer.run(span, seed, &counter));
        Load {
            stop,
            count,
            thread,
        }
    }

    /// Acknowledged writes so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Waits for `more` further acknowledged writes.
    pub fn progress(&self, more: u64) {
        let goal = self.count() + more;
        wait_until("writes go on", || {
            assert!(!self.thread.is_finished(), "the writer has died");
            self.count() >= goal
        });
    }

    /// Ends the writer; a write that waits for a dead server is given up.
    pub fn finish(self) -> History {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the writer's own checks")
    }
}

struct Writer {
    socket: PathBuf,
    nbd: Option<Nbd>,
    stop: Arc<AtomicBool>,
    history: History,
}

impl Writer {
    fn run(mut self, span: u64, mut state: u64, counter: &AtomicU64) -> History {
        let mut number = 0;
        while !self.stop.load(Ordering::Acquire) {
            number += 1;
            state = random(state | 1);
            let offset = state % (span / BLOCK as u64) * BLOCK as u64;
            self.history.open = Some((offset, number));
            let begin = Instant::now();
            if !self.write(offset, number) {
                return self.history;
            }
            self.history.slowest = self.history.slowest.max(begin.elapsed());
            self.history.acked.insert(offset, number);
            self.history.open = None;
            counter.store(number, Ordering::Release);
        }
        self.history
    }

    /// Repeats a write until it is acknowledged; false when told to stop before that.
    fn write(&mut self, offset: u64, number: u64) -> bool {
        let data = block(number, offset);
        loop {
            let written = match &mut self.nbd {
                Some(nbd) => nbd.write(offset, &data),
                None => Err(std::io::ErrorKind::NotConnected.into()),
            };
            let Err(error) = written else { return true };
            // A server that is killed vanishes; one that lives must never fail a write.
            assert!(error.raw_os_error() != Some(5), "I/O error: {error}");
            if self.stop.load(Ordering::Acquire) {
                return false;
            }
            self.nbd = Nbd::connect(&self.socket).ok();
            match &self.nbd {
                Some(_) => self.history.reconnects += 1,
                None => std::thread::sleep(RETRY),
            }
        }
    }
}

impl History {
    /// Checks that every acknowledged write is there, unless the open one replaced it.
    pub fn verify(&self, nbd: &mut Nbd) {
        assert!(!self.acked.is_empty(), "nothing was written");
        for (offset, number) in &self.acked {
            let found = nbd.read(*offset, BLOCK).expect("reads");
            let replaced = self.open.filter(|(at, _)| at == offset);
            let fits = found == block(*number, *offset)
                || replaced.is_some_and(|(at, open)| found == block(open, at));
            assert!(
                fits,
                "lost: block at {offset} shall hold write {number}, begins with {:?}",
                &found[..16]
            );
        }
    }
}
