//! Where the bytes go: files, or what a test puts in their place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;

/// A place for one file that can be replaced whole.
pub(super) trait Disk: Send {
    /// Whether the file is there.
    fn exists(&self) -> bool;
    /// The file, locked.
    fn open(&self) -> io::Result<Box<dyn StorageBackend>>;
    /// A new empty one beside it.
    fn fresh(&self) -> io::Result<Box<dyn StorageBackend>>;
    /// The new one, synced by now, takes the place of the other for good.
    fn settle(&self) -> io::Result<()>;
}

/// A file in a directory.
pub(super) struct Files {
    path: PathBuf,
    beside: PathBuf,
}

impl Files {
    pub(super) fn new(path: &Path) -> Files {
        Files { path: path.to_owned(), beside: path.with_extension("new") }
    }
}

impl Disk for Files {
    fn exists(&self) -> bool {
        // Anything but a plain "no": opening it tells what is wrong.
        !matches!(fs::symlink_metadata(&self.path), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        locked(OpenOptions::new().read(true).write(true).open(&self.path)?)
    }

    fn fresh(&self) -> io::Result<Box<dyn StorageBackend>> {
        // What a killed process left.
        match fs::remove_file(&self.beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        locked(OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&self.beside)?)
    }

    fn settle(&self) -> io::Result<()> {
        // redb syncs the data; length and allocation of a new file are worth a full sync.
        File::open(&self.beside)?.sync_all()?;
        fs::rename(&self.beside, &self.path)?;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }
}

fn locked(file: File) -> io::Result<Box<dyn StorageBackend>> {
    match FileBackend::new(file) {
        Ok(backend) => Ok(Box::new(backend)),
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Notes when a sync failed.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) inner: Box<dyn StorageBackend>,
    pub(super) unsynced: Arc<AtomicBool>,
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data().inspect_err(|_| self.unsynced.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}
