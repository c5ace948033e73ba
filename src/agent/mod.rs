//! The long-running node process: control socket, supervision of the data planes, sysfs.

pub mod channel;
pub mod dirs;
pub mod events;
pub mod hub;
pub mod protocol;
pub mod view;
