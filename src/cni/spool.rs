//! What the plugin keeps on disk: turns, and addresses to be given back to a meshd that did not answer.
//!
//! ```text
//! DIR/turns             one byte for each owner: who has it locked may change that owner's interface
//! DIR/pending/HASH      socket and owner of an address that DEL could not free ─▶ delivered by the next call that reaches that meshd
//! ```
//! An ADD of the same owner takes its entry away first, so that an address in use is never freed late.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::error::{CniError, FILE};
use crate::netlink::plug::port_name;
use crate::sys::lock::lock_byte;

/// The directory.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
}

/// The right to change one owner's interface; ends when dropped, or with the process.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

impl Spool {
    /// It is made when something has to be kept.
    pub fn new(dir: &Path) -> Spool {
        Spool { dir: dir.into() }
    }

    /// Waits for the owner's turn.
    pub fn turn(&self, owner: &str) -> Result<Turn, CniError> {
        let turn = self.lock(owner, true).map_err(|error| self.failed("turns", &error))?;
        turn.ok_or_else(|| self.failed("turns", &io::ErrorKind::WouldBlock.into()))
    }

    /// The owner's turn, unless somebody else has it.
    pub fn try_turn(&self, owner: &str) -> Option<Turn> {
        self.lock(owner, false).ok().flatten()
    }

    fn lock(&self, owner: &str, wait: bool) -> io::Result<Option<Turn>> {
        fs::create_dir_all(&self.dir)?;
        let file = File::options().create(true).truncate(false).write(true).open(self.dir.join("turns"))?;
        Ok(lock_byte(file.as_fd(), number(owner), wait)?.then_some(Turn { _file: file }))
    }

    /// Notes that the address of this owner is to be freed.
    pub fn defer(&self, owner: &str, socket: &Path) -> Result<(), CniError> {
        let place = self.place(owner);
        let write = || {
            let pending = self.dir.join("pending");
            fs::create_dir_all(&pending)?;
            if fs::read_dir(&pending)?.take(PENDING_MAX + 1).count() > PENDING_MAX {
                return Err(io::Error::other(format!("more than {PENDING_MAX} addresses wait there")));
            }
            // Half a file is none: it gets its name when it is whole.
            let half = place.with_extension("half");
            let file = File::create(&half)?;
            io::Write::write_all(&mut &file, format!("{}\n{owner}\n", socket.display()).as_bytes())?;
            file.sync_all()?;
            fs::rename(&half, &place)
        };
        write().map_err(|error| self.failed("pending", &error))
    }

    /// The address of this owner is not to be freed any more.
    pub fn cancel(&self, owner: &str) -> Result<(), CniError> {
        match fs::remove_file(self.place(owner)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("pending", &error)),
            _ => Ok(()),
        }
    }

    /// Owners whose addresses wait for the meshd at this socket, at most so many.
    pub fn pending(&self, socket: &Path, most: usize) -> Vec<String> {
        let Ok(files) = fs::read_dir(self.dir.join("pending")) else { return Vec::new() };
        let socket = socket.display().to_string();
        let owner = |file: io::Result<fs::DirEntry>| {
            let path = file.ok()?.path();
            let text = path.extension().is_none().then(|| fs::read_to_string(&path).ok())??;
            let (place, owner) = text.split_once('\n')?;
            (place == socket).then(|| owner.trim_end().to_owned())
        };
        files.filter_map(owner).take(most).collect()
    }

    /// Whether the address of this owner waits.
    pub fn waits(&self, owner: &str) -> bool {
        self.place(owner).exists()
    }

    fn place(&self, owner: &str) -> PathBuf {
        self.dir.join("pending").join(port_name(owner))
    }

    fn failed(&self, what: &str, error: &io::Error) -> CniError {
        CniError::new(FILE, format!("{}: {error}", self.dir.join(what).display()))
    }
}

/// Of the byte that is locked: 48 bits, as the port's name has.
fn number(owner: &str) -> u64 {
    port_name(owner).strip_prefix("mp-").and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// Far more than the containers of a machine, each of which waits here once at most.
const PENDING_MAX: usize = 10_000;
