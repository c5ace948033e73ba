//! TCP over loopback, with a real ring.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, squeue, types};

use crate::conformance::{Fixture, PATIENCE, RawPeer, SEND_BUFFER, Side, StreamFixture};
use crate::ring::{RingFull, Submitter};
use crate::socket::{SocketProfile, Tuning};
use crate::tcp::{TcpConfig, TcpLink};

/// The ring as one side sees it: its id is the upper half of the user data.
struct Owner<'a> {
    ring: &'a mut IoUring,
    id: u32,
}

impl Submitter for Owner<'_> {
    fn submit(&mut self, entry: squeue::Entry, token: u32) -> Result<(), RingFull> {
        let entry = entry.user_data(u64::from(self.id) << 32 | u64::from(token));
        // SAFETY: a link keeps what its entries name until their completions, and the checks drop
        // links only after they have drained.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| RingFull)
    }
}

struct Tcp {
    ring: IoUring,
    listener: TcpListener,
    next_id: u32,
    deadline: Instant,
}

impl Tcp {
    /// `entries`: size of the submission queue; 1 makes it full all the time.
    fn new(entries: u32) -> Tcp {
        Tcp {
            ring: IoUring::builder()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .build(entries)
                .expect("ring"),
            listener: TcpListener::bind("127.0.0.1:0").expect("bind"),
            next_id: 0,
            deadline: Instant::now(),
        }
    }

    fn sockets(&mut self) -> (TcpStream, TcpStream) {
        self.deadline = Instant::now() + PATIENCE;
        let address = self.listener.local_addr().expect("address");
        let near = TcpStream::connect(address).expect("connect");
        let (far, _) = self.listener.accept().expect("accept");
        (near, far)
    }

    fn side(&mut self, socket: TcpStream) -> Side {
        let profile = SocketProfile {
            tuning: Tuning::Synchronous,
            timeout: Duration::from_secs(10),
            send_buffer: 0,
            receive_buffer: 0,
        };
        profile.apply(&socket).expect("options");
        let config = TcpConfig {
            send_buffer: SEND_BUFFER,
            low_water: profile.low_water(),
        };
        self.next_id += 1;
        let link = TcpLink::new(OwnedFd::from(socket), config);
        let mut side = Side::new(self.next_id, Box::new(link));
        side.link.start(&mut Owner {
            ring: &mut self.ring,
            id: side.id,
        });
        side
    }
}

impl Fixture for Tcp {
    fn pair(&mut self) -> (Side, Side) {
        let (a, b) = self.sockets();
        (self.side(a), self.side(b))
    }

    fn turn(&mut self, sides: &mut [&mut Side]) -> bool {
        for side in sides.iter_mut() {
            let mut owner = Owner {
                ring: &mut self.ring,
                id: side.id,
            };
            side.link.pump(&mut owner, &mut side.pool, &mut side.events);
            side.absorb();
        }
        let wait = types::Timespec::new().nsec(200_000);
        let arguments = types::SubmitArgs::new().timespec(&wait);
        // A time-out is the normal end of a wait.
        let _ = self.ring.submitter().submit_with_args(1, &arguments);
        let completions: Vec<_> = self.ring.completion().collect();
        for entry in completions {
            let id = (entry.user_data() >> 32) as u32;
            let token = entry.user_data() as u32;
            for side in sides.iter_mut().filter(|side| side.id == id) {
                let mut owner = Owner {
                    ring: &mut self.ring,
                    id,
                };
                side.link.on_completion(
                    &mut owner,
                    &mut side.pool,
                    token,
                    entry.result(),
                    entry.flags(),
                    &mut side.events,
                );
                side.absorb();
            }
        }
        Instant::now() > self.deadline
    }
}

impl RawPeer for TcpStream {
    fn write(&mut self, bytes: &[u8]) {
        // A link that has refused the start of the bytes resets the connection.
        let _ = self.write_all(bytes);
    }

    fn end(&mut self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl StreamFixture for Tcp {
    fn raw(&mut self) -> (Box<dyn RawPeer>, Side) {
        let (near, far) = self.sockets();
        (Box::new(far), self.side(near))
    }
}

crate::conformance::conforms!(Tcp::new(64));

mod crowded_ring {
    crate::conformance::checks!(
        super::Tcp::new(1);
        order,
        backpressure,
        close,
        finish,
        reconnect,
    );
}
