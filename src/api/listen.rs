//! Opens the two listening sockets.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

/// Why there is no socket. Each text names the place and the way out.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Someone answers there.
    #[error("another meshd answers at {0}: stop it, or choose another --socket")]
    Taken(PathBuf),
    /// Something else than a socket stands there; it is left alone.
    #[error("{0} exists and is not a socket: move it away, or choose another --socket")]
    NotASocket(PathBuf),
    /// The kernel's limit of 107 bytes.
    #[error("the socket path {0} is too long: at most 107 bytes are possible, choose a shorter --socket")]
    TooLong(PathBuf),
    /// The kernel's word.
    #[error("cannot listen at {path}: {error}; choose another --socket")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The kernel's word.
    #[error("cannot listen at {address}: {error}; choose another --http, or `none`")]
    Http {
        /// Where.
        address: SocketAddr,
        /// What it said.
        error: io::Error,
    },
}

/// The control socket. Dropping it removes its file, unless someone else has put theirs there.
#[derive(Debug)]
pub struct SocketListener {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file that we made.
    file: (u64, u64),
}

impl Drop for SocketListener {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens the control socket: makes the directory, replaces a socket on which nobody answers, mode 0660. Needs a tokio runtime.
pub fn bind_socket(path: &Path) -> Result<SocketListener, ListenError> {
    let fail = |error| ListenError::Socket { path: path.into(), error };
    let address = SockAddr::unix(path).map_err(|_| ListenError::TooLong(path.into()))?;
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(fail)?;
    }
    remove_stale(path, &address)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(fail)?;
    // Before bind, the mode of the socket is the mode its file will get: there is no moment with a wider one.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(MODE)).map_err(|error| fail(error.into()))?;
    socket.bind(&address).map_err(fail)?;
    // The umask may have taken bits from the group.
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(fail)?;
    socket.listen(BACKLOG).map_err(fail)?;
    socket.set_nonblocking(true).map_err(fail)?;
    let file = fs::symlink_metadata(path).map_err(fail)?;
    let listener = UnixListener::from_std(StdUnixListener::from(std::os::fd::OwnedFd::from(socket))).map_err(fail)?;
    Ok(SocketListener { listener, path: path.into(), file: (file.dev(), file.ino()) })
}

fn remove_stale(path: &Path, address: &SockAddr) -> Result<(), ListenError> {
    let fail = |error| ListenError::Socket { path: path.into(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(ListenError::NotASocket(path.into())),
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(fail)?;
    // A full backlog must not hold us: whoever has one is alive.
    probe.set_nonblocking(true).map_err(fail)?;
    match probe.connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(fail),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(fail(error)),
        _ => Err(ListenError::Taken(path.into())),
    }
}

/// Opens the read-only HTTP port. Needs a tokio runtime.
pub fn bind_http(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A restart must not wait for connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|error| ListenError::Http { address, error })
}

/// Owner and group; the group is how an administrator lends `meshctl` to others.
const MODE: u32 = 0o660;
/// Connections that the kernel holds for us while all of ours are in use.
const BACKLOG: i32 = 64;
