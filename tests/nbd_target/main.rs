//! The NBD server on a real ring, with real clients and with one that misbehaves.

mod client;
mod harness;
mod raw;
mod tools;
