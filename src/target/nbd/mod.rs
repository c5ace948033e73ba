//! The NBD front end: a volume as a network block device on a Unix socket or TCP port.
//!
//! ```text
//!   socket -> connection -> handshake          chooses the export (no I/O)
//!               |    \--> session -> Tags -> TargetEvent::Request -> engine
//!               |            ^                                         |
//!   socket <- outbox <-------+--------------- Target::complete <-------'
//! ```
//!
//! [`protocol`] has the numbers and the rules without state; `handshake` and `session` are state
//! machines without I/O; `connection` puts them on a socket; [`NbdServer`] owns the listener, the
//! connections and the tags and is the [`Target`](super::Target). A tag's buffer belongs to the
//! session while a payload comes in, to the engine until it completes, and for a read to the
//! session again until the reply is sent. The ring may use a connection's buffers until its last
//! submission is back; a connection that ends waits for that before it is dropped.
//!
//! What is not offered: TLS (run it over a Unix socket or a tunnel), extended headers, CACHE,
//! RESIZE, and block status that knows holes.

mod connection;
mod handshake;
mod listen;
mod outbox;
pub mod protocol;
mod server;
mod session;
mod submit;
mod tags;

pub use listen::{ListenError, MAX_PATH, listen_tcp, listen_unix};
pub use protocol::Export;
pub use server::{MAX_CONNECTIONS, MAX_DEPTH, NbdOptions, NbdServer, NbdSetupError};
