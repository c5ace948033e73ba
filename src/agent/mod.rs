//! The long-running node process: control socket, supervision of the data planes, sysfs.

pub mod protocol;
