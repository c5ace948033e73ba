//! An NBD server on a ring of its own, with a disk in memory where the engine would be.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use io_uring::{IoUring, squeue, types};
use lockstep::engine::{IoFailure, Op, Span};
use lockstep::target::nbd::{Export, NbdOptions, NbdServer, listen_tcp, listen_unix};
use lockstep::target::{MAX_DATA, Target, TargetEvent};
use lockstep_transport::ring::{RingFull, Submitter};

/// The ring; it can be told to refuse some submissions.
struct Ring {
    ring: IoUring,
    refuse_every: Option<u32>,
    submissions: u32,
    on_ring: u32,
}

impl Submitter for Ring {
    fn submit(&mut self, entry: squeue::Entry, token: u32) -> Result<(), RingFull> {
        self.submissions += 1;
        if self
            .refuse_every
            .is_some_and(|n| self.submissions.is_multiple_of(n))
        {
            return Err(RingFull);
        }
        let entry = entry.user_data(token.into());
        // SAFETY: the server keeps what the entry names until the completion.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit().unwrap();
            // SAFETY: as above.
            unsafe { self.ring.submission().push(&entry) }.map_err(|_| RingFull)?;
        }
        self.on_ring += 1;
        Ok(())
    }
}

/// What a test can look at and change while the server runs.
#[derive(Default)]
pub struct State {
    pub disk: Vec<u8>,
    /// Requests in the order in which they reached the disk.
    pub log: Vec<Op>,
    /// Requests wait.
    pub hold: bool,
    /// Requests fail.
    pub fail: Option<IoFailure>,
    /// Requests that wait now.
    pub held: usize,
    pub connections: usize,
    /// Largest number of requests at the engine at once.
    pub deepest: usize,
}

#[derive(Clone)]
pub struct Setup {
    pub size: u64,
    pub depth: u32,
    pub min_block: u32,
    pub read_only: bool,
    pub handshake_timeout: Duration,
    pub stall_timeout: Duration,
    pub refuse_every: Option<u32>,
    pub refusal: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            size: 64 << 20,
            depth: 64,
            min_block: 512,
            read_only: false,
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            refuse_every: None,
            refusal: None,
        }
    }
}

/// What is known when the server has ended.
pub struct Summary {
    /// Bytes of the buffers that are resident.
    pub resident: usize,
}

#[derive(Clone)]
pub enum Place {
    Unix(PathBuf),
    Tcp(u16),
}

impl Place {
    pub fn uri(&self) -> String {
        match self {
            Place::Unix(path) => format!("nbd+unix:///r0?socket={}", path.display()),
            Place::Tcp(port) => format!("nbd://127.0.0.1:{port}/r0"),
        }
    }
}

/// A running server; it is stopped, and its end checked, when this is dropped.
pub struct Server {
    pub place: Place,
    pub state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Summary>>,
    _dir: tempfile::TempDir,
}

impl Server {
    pub fn unix(setup: Setup) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let listener = listen_unix(&path).unwrap();
        Server::run(dir, listener, Place::Unix(path), setup)
    }

    pub fn tcp(setup: Setup) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = std::net::TcpListener::from(listener.try_clone().unwrap())
            .local_addr()
            .unwrap()
            .port();
        Server::run(dir, listener, Place::Tcp(port), setup)
    }

    fn run(dir: tempfile::TempDir, listener: OwnedFd, place: Place, setup: Setup) -> Server {
        let state = Arc::new(Mutex::new(State {
            disk: vec![0; setup.size as usize],
            ..State::default()
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (state, stop) = (state.clone(), stop.clone());
            move || serve(listener, &setup, &state, &stop)
        });
        Server {
            place,
            state,
            stop,
            thread: Some(thread),
            _dir: dir,
        }
    }

    pub fn path(&self) -> &Path {
        self._dir.path()
    }

    pub fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock().unwrap())
    }

    /// Waits until the state is as wanted.
    pub fn wait(&self, what: &str, mut wanted: impl FnMut(&State) -> bool) {
        let start = Instant::now();
        while !self.with(|state| wanted(state)) {
            assert!(start.elapsed() < Duration::from_secs(20), "no {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks the server to stop, without waiting.
    pub fn begin_stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(|t| t.is_finished())
    }

    pub fn finish(mut self) -> Summary {
        self.join().unwrap().unwrap()
    }

    /// Stops the server; a server that does not end is a failure, not a hang.
    fn join(&mut self) -> Option<std::thread::Result<Summary>> {
        self.begin_stop();
        let start = Instant::now();
        while !self.has_ended() {
            if start.elapsed() > Duration::from_secs(20) {
                assert!(std::thread::panicking(), "the server does not stop");
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.thread.take().map(JoinHandle::join)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(mut state) = self.state.lock() {
            state.hold = false;
        }
        let ended = self.join();
        assert!(std::thread::panicking() || ended.is_none_or(|end| end.is_ok()));
    }
}

fn serve(listener: OwnedFd, setup: &Setup, state: &Mutex<State>, stop: &AtomicBool) -> Summary {
    let mut target = match setup.refusal {
        Some(reason) => NbdServer::refusing(listener, reason).unwrap(),
        None => {
            let export = Export {
                name: "r0".into(),
                description: "a disk in memory".into(),
                size: setup.size,
                min_block: setup.min_block,
                discard: true,
                read_only: setup.read_only,
            };
            let options = NbdOptions {
                depth: setup.depth,
                handshake_timeout: setup.handshake_timeout,
                stall_timeout: setup.stall_timeout,
            };
            NbdServer::new(listener, export, options).unwrap()
        }
    };
    let mut ring = Ring {
        ring: IoUring::new(64).unwrap(),
        refuse_every: setup.refuse_every,
        submissions: 0,
        on_ring: 0,
    };
    target.start(&mut ring).unwrap();
    let (mut events, mut waiting, mut stopping) = (Vec::new(), Vec::new(), false);
    let mut stopped = false;
    while !stopped {
        reap(&mut ring, &mut target, &mut events);
        if stop.load(Ordering::Acquire) && !stopping {
            stopping = true;
            target.stop(&mut ring, &mut events);
        }
        for event in events.drain(..) {
            match event {
                TargetEvent::Request { tag, op } => {
                    assert!(tag < target.depth());
                    assert!(waiting.iter().all(|(other, _)| *other != tag), "tag in use");
                    waiting.push((tag, op));
                }
                TargetEvent::Stopped => stopped = true,
            }
        }
        let mut state = state.lock().unwrap();
        state.deepest = state.deepest.max(waiting.len());
        if !state.hold {
            // Last in, first out: nobody may rely on an order.
            while let Some((tag, op)) = waiting.pop() {
                let result = state.perform(op, target.buffer(tag));
                target.complete(&mut ring, tag, result);
            }
        }
        state.held = waiting.len();
        state.connections = target.connections();
    }
    assert!(waiting.is_empty(), "stopped with requests at the engine");
    assert_eq!(ring.on_ring, 0, "stopped with submissions on the ring");
    let resident = match setup.depth {
        0 => 0,
        depth => resident(target.buffer(0).as_ptr() as usize, depth as usize),
    };
    Summary { resident }
}

fn reap(ring: &mut Ring, target: &mut NbdServer, events: &mut Vec<TargetEvent>) {
    let pause = types::Timespec::new().nsec(5_000_000);
    let args = types::SubmitArgs::new().timespec(&pause);
    match ring.ring.submitter().submit_with_args(1, &args) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::TIME.raw_os_error()) => {}
        Err(error) => panic!("ring: {error}"),
    }
    let completions: Vec<_> = ring.ring.completion().collect();
    for completion in completions {
        ring.on_ring -= 1;
        let (token, result) = (completion.user_data() as u32, completion.result());
        target.on_completion(ring, token, result, completion.flags(), events);
    }
}

impl State {
    fn perform(&mut self, op: Op, buffer: &mut [u8]) -> Result<(), IoFailure> {
        self.log.push(op);
        if let Some(failure) = self.fail {
            return Err(failure);
        }
        match op {
            Op::Read { span } => {
                let disk = self.range(span, MAX_DATA);
                buffer[..disk.len()].copy_from_slice(disk);
            }
            Op::Write { span, .. } => {
                let disk = self.range(span, MAX_DATA);
                disk.copy_from_slice(&buffer[..disk.len()]);
            }
            Op::WriteZeroes { span, .. } | Op::Discard { span } => {
                self.range(span, 64 << 20).fill(0)
            }
            Op::Flush => {}
        }
        Ok(())
    }

    /// A range as the trait promises it.
    fn range(&mut self, span: Span, most: u32) -> &mut [u8] {
        assert!(span.len > 0 && span.len <= most, "{span}");
        assert!(
            span.start.is_multiple_of(512) && span.len.is_multiple_of(512),
            "{span}"
        );
        &mut self.disk[span.start as usize..span.end() as usize]
    }
}

/// Bytes resident in the buffers that begin at `base`.
fn resident(base: usize, depth: usize) -> usize {
    use std::os::unix::fs::FileExt;
    let pages = depth * MAX_DATA as usize / 4096;
    let mut entries = vec![0; pages * 8];
    std::fs::File::open("/proc/self/pagemap")
        .unwrap()
        .read_exact_at(&mut entries, (base / 4096 * 8) as u64)
        .unwrap();
    // The highest bit of an entry says that the page is present.
    let present = entries.chunks_exact(8).filter(|e| e[7] & 0x80 != 0);
    present.count() * 4096
}
