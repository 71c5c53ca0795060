//! What the machine of addresses keeps: pairs of bytes in one file, changed all or none and synced before anybody is told.
//!
//! ```text
//! Keep{seq, writes} ─▶ Keeper (thread) ─▶ Store::apply: one transaction of redb, fsync ─▶ Kept{seq, result}
//!                       takes all that waits      │ fails
//!                                                 └─▶ next time: file opened again, or written anew from memory when a sync failed
//! ```
//! May use core types. Deliberately lacks: any knowledge of what the pairs mean, and repetition: whoever gave a write that failed gives it again.
//!
//! All pairs are in memory as well (a few hundred bytes for each address given out). After a sync that failed, the kernel may show as written what the disk
//! never got, and drops the pages without another word: such a file is not trusted any more and is replaced whole.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use meshnet_core::ipam::Write;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableTable, StorageBackend, StorageError, TableDefinition,
};

mod disk;
mod keeper;

pub use keeper::Keeper;

use disk::{Disk, Files, Watched};

/// All pairs.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Why the file cannot be used: one line each, with the way out.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not what was written.
    #[error(
        "addresses file {0} is damaged ({1}): start once with --restored: this machine becomes a new peer; then claim the addresses of its containers by \
         'meshctl ip claim', and bring back the others of the old peer by 'meshctl rmpeer' on another one"
    )]
    Damaged(PathBuf, String),
    /// Made by another peer.
    #[error(
        "addresses file {0} belongs to the peer {1}, not to this one: bring back the identity it was made with, or remove both"
    )]
    Foreign(PathBuf, String),
    /// Made by a later version.
    #[error("addresses file {0} was written by a newer meshd ({1}): run that one")]
    Newer(PathBuf, String),
    /// Another process holds it.
    #[error("addresses file {0} is in use by another process: stop that one")]
    InUse(PathBuf),
    /// No right to it.
    #[error("addresses file {0} cannot be written ({1}): give meshd the right to write it, or another --state-dir")]
    ReadOnly(PathBuf, io::Error),
    /// No room.
    #[error("addresses file {0}: the disk is full ({1}): free some space")]
    Full(PathBuf, io::Error),
    /// Anything else that the system says.
    #[error("addresses file {0}: {1}")]
    Io(PathBuf, String),
}

/// The file, open.
pub struct Store {
    path: PathBuf,
    /// The peer whose file it is.
    peer: String,
    disk: Box<dyn Disk>,
    /// None after a failure: to be opened again.
    db: Option<Database>,
    /// What was acknowledged.
    pairs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A sync failed: the file on disk is not what the kernel shows.
    unsynced: Arc<AtomicBool>,
}

impl Store {
    /// Opens the file of this peer, or makes it; gives all that is in it.
    pub fn open(path: &Path, peer: &str) -> Result<(Store, Pairs), StoreError> {
        Store::on(path, peer, Box::new(Files::new(path)))
    }

    fn on(path: &Path, peer: &str, disk: Box<dyn Disk>) -> Result<(Store, Pairs), StoreError> {
        let mut store = Store {
            path: path.to_owned(),
            peer: peer.to_owned(),
            disk,
            db: None,
            pairs: BTreeMap::new(),
            unsynced: Arc::default(),
        };
        if store.disk.exists() {
            store.pairs = store.reopen()?;
        } else {
            store.rewrite()?;
        }
        let pairs = store.pairs.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok((store, pairs))
    }

    /// Makes all of these changes, or none, and returns when the disk has them. After an error it is not known whether it has: give them again.
    pub fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let result = self.try_apply(writes);
        match &result {
            Ok(()) => writes.iter().for_each(|write| self.remember(write)),
            // It may have failed for good; whatever it holds is on the disk or in memory.
            Err(_) => self.db = None,
        }
        result
    }

    fn try_apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        if self.unsynced.load(Ordering::Acquire) {
            self.rewrite()?;
        } else if self.db.is_none() {
            // What a failed write left there is given again by whoever made it.
            self.reopen()?;
        }
        let Some(db) = &self.db else { return Err(self.other("not open")) };
        commit(db, writes, None).map_err(|error| self.explain(error))
    }

    fn remember(&mut self, write: &Write) {
        match &write.value {
            Some(value) => drop(self.pairs.insert(write.key.clone(), value.clone())),
            None => drop(self.pairs.remove(&write.key)),
        }
    }

    /// Opens the file that is there and reads it.
    fn reopen(&mut self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, StoreError> {
        // Its lock goes with it.
        self.db = None;
        let backend = self.disk.open().map_err(|error| self.explain(error))?;
        let len = backend.len().map_err(|error| self.explain(error))?;
        if len == 0 {
            // It gets its name when it is complete.
            return Err(self.damaged("it is empty"));
        }
        // What redb does not expect in a file makes it panic.
        let opened = catch_unwind(AssertUnwindSafe(|| self.open_whole(backend)));
        let (db, about, pairs) = opened.unwrap_or_else(|_| Err(self.damaged("it breaks off or makes no sense")))?;
        let says = |key: &[u8]| about.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
        let format = says(FORMAT).ok_or_else(|| self.damaged("its format is missing"))?;
        if format != FORMAT_NOW {
            return Err(StoreError::Newer(self.path.clone(), format!("format {format}, this one knows {FORMAT_NOW}")));
        }
        let peer = says(PEER).unwrap_or_default();
        if peer != self.peer {
            return Err(StoreError::Foreign(self.path.clone(), peer));
        }
        self.db = Some(db);
        Ok(pairs)
    }

    /// Writes a new file with all pairs and puts it in the place of the old one.
    fn rewrite(&mut self) -> Result<(), StoreError> {
        self.db = None;
        let backend = self.disk.fresh().map_err(|error| self.explain(error))?;
        // Failures from here on are those of the new file.
        self.unsynced.store(true, Ordering::Release);
        let db = self.build(backend)?;
        let put = |(key, value): (&Vec<u8>, &Vec<u8>)| Write { key: key.clone(), value: Some(value.clone()) };
        let writes: Vec<Write> = self.pairs.iter().map(put).collect();
        commit(&db, &writes, Some(&self.peer)).map_err(|error| self.explain(error))?;
        self.disk.settle().map_err(|error| self.explain(error))?;
        self.unsynced.store(false, Ordering::Release);
        self.db = Some(db);
        Ok(())
    }

    fn build(&self, backend: Box<dyn StorageBackend>) -> Result<Database, StoreError> {
        let watched = Watched { inner: backend, unsynced: Arc::clone(&self.unsynced) };
        let db = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(watched);
        db.map_err(|error| self.explain(error))
    }

    fn explain(&self, error: impl Into<Fault>) -> StoreError {
        let path = self.path.clone();
        match error.into() {
            Fault::Io(error) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(path, error),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                    StoreError::ReadOnly(path, error)
                }
                io::ErrorKind::WouldBlock => StoreError::InUse(path),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    StoreError::Damaged(path, error.to_string())
                }
                _ => StoreError::Io(path, error.to_string()),
            },
            Fault::Damaged(words) => StoreError::Damaged(path, words),
            Fault::Newer(words) => StoreError::Newer(path, words),
            Fault::InUse => StoreError::InUse(path),
            Fault::Other(words) => StoreError::Io(path, words),
        }
    }

    /// A file in which every page is what was written: after a power cut, redb has gone back to the last whole commit by then.
    fn open_whole(&self, backend: Box<dyn StorageBackend>) -> Result<(Database, Map, Map), StoreError> {
        let mut db = self.build(backend)?;
        if !db.check_integrity().map_err(|error| self.explain(error))? {
            return Err(self.damaged("a checksum is wrong"));
        }
        let (about, pairs) = read(&db).map_err(|error| self.explain(error))?;
        Ok((db, about, pairs))
    }

    fn damaged(&self, words: &str) -> StoreError {
        StoreError::Damaged(self.path.clone(), words.into())
    }

    fn other(&self, words: &str) -> StoreError {
        StoreError::Io(self.path.clone(), words.into())
    }
}

/// What redb and the system say, by what is to be done about it.
enum Fault {
    Io(io::Error),
    Damaged(String),
    Newer(String),
    InUse,
    Other(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Io(error)
    }
}

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Fault {
        use redb::Error as E;
        match error {
            E::Io(error) => Fault::Io(error),
            E::Corrupted(words) => Fault::Damaged(words),
            E::UpgradeRequired(version) => Fault::Newer(format!("file format {version}")),
            E::DatabaseAlreadyOpen => Fault::InUse,
            error @ (E::TableTypeMismatch { .. }
            | E::TableDoesNotExist(_)
            | E::TableIsMultimap(_)
            | E::RepairAborted) => Fault::Damaged(error.to_string()),
            error => Fault::Other(error.to_string()),
        }
    }
}

impl From<DatabaseError> for Fault {
    fn from(error: DatabaseError) -> Fault {
        redb::Error::from(error).into()
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Fault {
        redb::Error::from(error).into()
    }
}

/// One transaction. `make`: of a new file, for this peer.
fn commit(db: &Database, writes: &[Write], make: Option<&str>) -> Result<(), redb::Error> {
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut table = transaction.open_table(KEPT)?;
        for write in writes {
            match &write.value {
                Some(value) => drop(table.insert(write.key.as_slice(), value.as_slice())?),
                None => drop(table.remove(write.key.as_slice())?),
            }
        }
        if let Some(peer) = make {
            let mut about = transaction.open_table(ABOUT)?;
            about.insert(FORMAT, FORMAT_NOW.as_bytes())?;
            about.insert(PEER, peer.as_bytes())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// All of [`ABOUT`] and all of [`KEPT`].
fn read(db: &Database) -> Result<(Map, Map), redb::Error> {
    use redb::ReadableDatabase;
    let transaction = db.begin_read()?;
    let all = |table: TableDefinition<&'static [u8], &'static [u8]>| {
        let mut map = Map::new();
        for pair in transaction.open_table(table)?.iter()? {
            let (key, value) = pair?;
            map.insert(key.value().to_vec(), value.value().to_vec());
        }
        Ok::<_, redb::Error>(map)
    };
    Ok((all(ABOUT)?, all(KEPT)?))
}

const KEPT: TableDefinition<&[u8], &[u8]> = TableDefinition::new("kept");
const ABOUT: TableDefinition<&[u8], &[u8]> = TableDefinition::new("about");
/// In [`ABOUT`]: the form of what is kept.
const FORMAT: &[u8] = b"format";
/// The only one so far.
const FORMAT_NOW: &str = "1";
/// In [`ABOUT`]: whose file it is.
const PEER: &[u8] = b"peer";
/// Pages in memory: everything is there already, so this only spares reads of the tree's upper pages.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

#[cfg(test)]
mod tests;
