//! Making the listening socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, chmod, lstat, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};

/// Connections that the kernel keeps for us to accept.
const BACKLOG: i32 = 64;

/// Longest path of a Unix socket in bytes, the terminating zero not counted.
pub const MAX_PATH: usize = 107;

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("the socket path {path} has {length} bytes, at most {MAX_PATH} are possible")]
    PathTooLong { path: PathBuf, length: usize },
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    #[error("another server listens on {0}")]
    InUse(String),
    #[error("cannot listen on {place}: {source}")]
    System { place: String, source: io::Error },
}

/// Listens on a Unix socket that only its owner may use.
///
/// A socket file that nobody listens on is replaced; anything else at `path` is left alone. The
/// file stays when the socket is closed: whoever made it removes it.
pub fn listen_unix(path: &Path) -> Result<OwnedFd, ListenError> {
    let length = path.as_os_str().len();
    if length > MAX_PATH {
        return Err(ListenError::PathTooLong {
            path: path.to_owned(),
            length,
        });
    }
    let failed = |errno: Errno| ListenError::System {
        place: path.display().to_string(),
        source: errno.into(),
    };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let socket = new_socket(AddressFamily::UNIX, SocketFlags::CLOEXEC).map_err(failed)?;
    match bind(&socket, &address) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            remove_stale(path, &address)?;
            bind(&socket, &address).map_err(failed)?;
        }
        Err(errno) => return Err(failed(errno)),
    }
    // Nobody can connect before listen(), so there is no moment with laxer permissions.
    chmod(path, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    listen(&socket, BACKLOG).map_err(failed)?;
    Ok(socket)
}

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let failed = |errno: Errno| ListenError::System {
        place: path.display().to_string(),
        source: errno.into(),
    };
    let status = lstat(path).map_err(failed)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Socket {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = new_socket(AddressFamily::UNIX, flags).map_err(failed)?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => unlink(path).map_err(failed),
        // Connected, or its backlog is full, or we may not even try: it is somebody's.
        _ => Err(ListenError::InUse(path.display().to_string())),
    }
}

/// Listens on a TCP address; port 0 takes a free one.
pub fn listen_tcp(address: SocketAddr) -> Result<OwnedFd, ListenError> {
    let failed = |errno: Errno| match errno {
        Errno::ADDRINUSE => ListenError::InUse(address.to_string()),
        errno => ListenError::System {
            place: address.to_string(),
            source: errno.into(),
        },
    };
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = new_socket(family, SocketFlags::CLOEXEC).map_err(failed)?;
    // A restarted server must not wait for the old connections' TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true).map_err(failed)?;
    bind(&socket, &address).map_err(failed)?;
    listen(&socket, BACKLOG).map_err(failed)?;
    Ok(socket)
}

fn new_socket(family: AddressFamily, flags: SocketFlags) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::STREAM, flags, None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let first = listen_unix(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(listen_unix(&path), Err(ListenError::InUse(_))));
        UnixStream::connect(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap_err();
        let _second = listen_unix(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn other_files_and_long_paths_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            listen_unix(&path),
            Err(ListenError::NotASocket(_))
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let long = dir.path().join("x".repeat(MAX_PATH));
        assert!(matches!(
            listen_unix(&long),
            Err(ListenError::PathTooLong { .. })
        ));
        let nowhere = dir.path().join("missing/nbd.sock");
        assert!(matches!(
            listen_unix(&nowhere),
            Err(ListenError::System { .. })
        ));
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen_tcp(address).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()));
        listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    }
}
