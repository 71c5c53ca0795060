//! The simulated disk: what is written, what is synced, and a fault at the n-th operation, for every n.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::disk::Disk;
use super::*;

/// What happens at one operation (write, sync, change of length, replacement).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// It and the next ones fail with this; then all is well again.
    Error {
        at: u64,
        times: u64,
        kind: io::ErrorKind,
    },
    /// The power goes.
    Cut {
        at: u64,
    },
}

/// What the disk has of that which was not synced, after the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    All,
    /// The first writes, the last of them torn.
    Torn,
    /// Any sectors of any writes.
    Any,
}

#[derive(Debug, Default, Clone)]
struct SimFile {
    /// On the disk.
    durable: Vec<u8>,
    /// Written since the last sync.
    waiting: Vec<Change>,
    /// As the kernel shows it.
    shown: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

fn change(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => {
            let end = at + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(data);
        }
        Change::Length(length) => bytes.resize(*length, 0),
    }
}

#[derive(Debug)]
struct World {
    files: BTreeMap<u32, SimFile>,
    main: Option<u32>,
    fresh: Option<u32>,
    next: u32,
    operations: u64,
    fault: Fault,
    off: bool,
    /// A failed sync drops what waits, as Linux does: shown, and never written.
    forgets: bool,
    random: StdRng,
}

impl World {
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fault {
            _ if self.off => Err(io::Error::other("the power is off")),
            Fault::Cut { at } if self.operations == at => {
                self.off = true;
                Err(io::Error::other("the power went"))
            }
            Fault::Error { at, times, kind } if (at..at + times).contains(&self.operations) => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn sync(&mut self, which: u32) {
        let file = self.files.get_mut(&which).unwrap();
        let waiting = std::mem::take(&mut file.waiting);
        waiting.iter().for_each(|each| change(&mut file.durable, each));
    }

    /// The power comes back.
    fn reboot(&mut self, after: After) {
        let World { files, random, .. } = self;
        for file in files.values_mut() {
            let mut waiting = std::mem::take(&mut file.waiting);
            match after {
                After::Nothing => waiting.clear(),
                After::All => {}
                After::Torn => {
                    waiting.truncate(random.random_range(0..=waiting.len()));
                    if let Some(Change::Write(_, data)) = waiting.last_mut() {
                        data.truncate(random.random_range(0..=data.len()));
                    }
                }
                After::Any => waiting = waiting.into_iter().flat_map(|each| sectors(each, random)).collect(),
            }
            waiting.iter().for_each(|each| change(&mut file.durable, each));
            file.shown.clone_from(&file.durable);
        }
        self.off = false;
        self.fault = Fault::None;
        self.fresh = None;
    }
}

/// Some of the sectors of a write.
fn sectors(each: Change, random: &mut StdRng) -> Vec<Change> {
    match each {
        Change::Length(_) if random.random() => vec![each],
        Change::Length(_) => Vec::new(),
        Change::Write(at, data) => {
            let parts = data.chunks(SECTOR).enumerate().filter(|_| random.random());
            parts.map(|(part, bytes)| Change::Write(at + part * SECTOR, bytes.to_vec())).collect()
        }
    }
}

#[derive(Debug, Clone)]
struct Sim(Arc<Mutex<World>>);

#[derive(Debug)]
struct Handle(Sim, u32);

impl Sim {
    fn new(fault: Fault, seed: u64) -> Sim {
        let random = StdRng::seed_from_u64(seed);
        let files = BTreeMap::new();
        let world =
            World { files, main: None, fresh: None, next: 0, operations: 0, fault, off: false, forgets: false, random };
        Sim(Arc::new(Mutex::new(world)))
    }

    fn with<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        // A panic of the library while it held this would show as its own failure.
        f(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn store(&self) -> Result<(Store, Pairs), StoreError> {
        Store::on(Path::new("/disk/ipam.redb"), ME, Box::new(self.clone()))
    }
}

impl Disk for Sim {
    fn exists(&self) -> bool {
        self.with(|world| world.main.is_some())
    }

    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        let main = self.with(|world| world.main);
        main.map(|main| Box::new(Handle(self.clone(), main)) as _).ok_or(io::ErrorKind::NotFound.into())
    }

    fn fresh(&self) -> io::Result<Box<dyn StorageBackend>> {
        self.with(|world| {
            world.step()?;
            world.next += 1;
            world.files.insert(world.next, SimFile::default());
            world.fresh = Some(world.next);
            Ok(Box::new(Handle(self.clone(), world.next)) as _)
        })
    }

    fn settle(&self) -> io::Result<()> {
        self.with(|world| {
            let done = world.step();
            // A rename that was not synced may have happened or not.
            if done.is_ok() || world.random.random() {
                world.main = world.fresh.take().or(world.main);
            }
            done
        })
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.with(|world| world.files[&self.1].shown.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.with(|world| {
            let found = world.files[&self.1].shown.get(offset as usize..offset as usize + out.len());
            out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.with(|world| {
            let done = world.step();
            match &done {
                Ok(()) => world.sync(self.1),
                Err(_) if world.forgets => world.files.get_mut(&self.1).unwrap().waiting.clear(),
                Err(_) => {}
            }
            done
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset as usize, data.to_vec()))
    }
}

impl Handle {
    fn change(&self, each: Change) -> io::Result<()> {
        self.0.with(|world| {
            let done = world.step();
            if done.is_ok() || world.off {
                let file = world.files.get_mut(&self.1).unwrap();
                // What was under way when the power went may be on the disk in part.
                if done.is_ok() || file.waiting.is_empty() || !matches!(file.waiting.last(), Some(Change::Length(_))) {
                    change(&mut file.shown, &each);
                    file.waiting.push(each);
                }
            }
            done
        })
    }
}

/// The work: small and large values, new, replaced and removed.
fn work() -> Vec<Vec<Write>> {
    let value = |at: usize| vec![at as u8; [20, 300, 5000, 60, 20_000][at % 5]];
    let one = |at: usize| {
        let mut writes = vec![put(&format!("key {}", at % 7), value(at)), put("counter", [at as u8])];
        if at % 3 == 2 {
            writes.push(Write { key: format!("key {}", (at + 3) % 7).into(), value: None });
        }
        writes
    };
    (0..30).map(one).collect()
}

/// What is there after the first so many of them.
fn states(work: &[Vec<Write>]) -> Vec<Pairs> {
    let mut now = BTreeMap::new();
    let mut states = vec![Vec::new()];
    for write in work.iter().flat_map(|writes| writes.iter().map(Some).chain([None])) {
        match write {
            Some(Write { key, value: Some(value) }) => drop(now.insert(key.clone(), value.clone())),
            Some(Write { key, value: None }) => drop(now.remove(key)),
            None => states.push(now.clone().into_iter().collect()),
        }
    }
    states
}

/// Works until the power goes; each write is given again when it failed. Gives how many were acknowledged, and how many failures there were.
fn run(disk: &Sim, work: &[Vec<Write>], tries: usize) -> (usize, usize) {
    let mut failures = 0;
    let mut opened = disk.store();
    while opened.is_err() && failures < tries && !disk.with(|world| world.off) {
        failures += 1;
        opened = disk.store();
    }
    let Ok((mut store, _)) = opened else { return (0, failures) };
    for (at, writes) in work.iter().enumerate() {
        while store.apply(writes).is_err() {
            failures += 1;
            if disk.with(|world| world.off) {
                return (at, failures);
            }
            assert!(failures <= tries, "it never succeeds again");
        }
    }
    (work.len(), failures)
}

/// How many there are when nothing fails: until the last write is acknowledged, and with the closing of the file.
fn operations() -> (u64, u64) {
    let disk = Sim::new(Fault::None, 0);
    let (mut store, _) = disk.store().unwrap();
    work().iter().for_each(|writes| store.apply(writes).unwrap());
    let count = || disk.with(|world| world.operations);
    let working = count();
    drop(store);
    (working, count())
}

/// After a power cut at any operation, whatever the disk made of the unsynced rest: what was acknowledged is there, and nothing in part.
#[test]
fn a_power_cut_at_every_operation() {
    let (work, (_, total)) = (work(), operations());
    let states = states(&work);
    assert!(total > 100, "{total}");
    for at in 1..=total {
        for after in [After::Nothing, After::All, After::Torn, After::Any, After::Any] {
            let disk = Sim::new(Fault::Cut { at }, at);
            let (acknowledged, _) = run(&disk, &work, 0);
            disk.with(|world| world.reboot(after));
            let (mut store, found) = disk.store().unwrap_or_else(|error| panic!("{after:?} at {at}: {error}"));
            let which = states.iter().position(|state| *state == found);
            assert!(
                which.is_some_and(|which| which == acknowledged || which == acknowledged + 1),
                "{after:?} at {at}: {acknowledged} acknowledged, found {which:?}"
            );
            store.apply(&[put("more", "x")]).unwrap();
        }
    }
}

/// An operation that fails once, or for a while: the same write given again succeeds, and all of it is there.
#[test]
fn a_failure_at_every_operation() {
    let (work, (working, total)) = (work(), operations());
    let last = states(&work).pop().unwrap();
    for at in 1..=total {
        for (times, kind) in [(1, io::ErrorKind::Other), (5, io::ErrorKind::StorageFull)] {
            for forgets in [false, true] {
                let disk = Sim::new(Fault::Error { at, times, kind }, at);
                disk.with(|world| world.forgets = forgets);
                let (done, failures) = run(&disk, &work, 20);
                // Nobody needs to know that closing the file failed.
                let told = failures > 0 || at > working;
                assert!(done == 30 && told, "{kind} at {at}: {done} done, {failures} failed");
                disk.with(|world| world.reboot(After::Nothing));
                let (_, found) = disk.store().unwrap_or_else(|error| panic!("{kind} at {at}: {error}"));
                assert_eq!(found, last, "{kind} at {at}, forgets: {forgets}");
            }
        }
    }
}

/// A failure, and later the power goes: what was acknowledged after the failure is there too. Without a new file after a failed sync it is not.
#[test]
fn a_power_cut_after_a_failed_sync() {
    let (work, (_, total)) = (work(), operations());
    let states = states(&work);
    for at in (1..total).step_by(3) {
        let disk = Sim::new(Fault::Error { at, times: 1, kind: io::ErrorKind::Other }, at);
        disk.with(|world| world.forgets = true);
        let upto = (at as usize * 7) % 30;
        let (done, _) = run(&disk, &work[..upto], 20);
        disk.with(|world| world.reboot(After::Nothing));
        let (_, found) = disk.store().unwrap_or_else(|error| panic!("at {at}: {error}"));
        assert_eq!(found, states[done], "at {at}, {done} done");
    }
}

const SECTOR: usize = 512;
