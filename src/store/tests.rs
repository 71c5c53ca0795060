//! Against files, and against a simulated disk that fails, fills up and loses power at every single operation.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;

mod faults;
mod place;

use place::Place;

const ME: &str = "11223344556677889900aabbccddeeff";

fn put(key: &str, value: impl AsRef<[u8]>) -> Write {
    Write { key: key.into(), value: Some(value.as_ref().to_vec()) }
}

fn open(place: &Place) -> Result<(Store, Pairs), StoreError> {
    Store::open(&place.file(), ME)
}

/// The error of an opening that must fail; one line.
#[track_caller]
fn refused(place: &Place) -> String {
    let error = open(place).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(place.file().to_str().unwrap()) && error.lines().count() == 1, "{error}");
    error
}

#[test]
fn what_was_kept_is_there_again() {
    let place = Place::new();
    let (mut store, pairs) = open(&place).unwrap();
    assert!(pairs.is_empty());
    store.apply(&[put("a", "1"), put("b", "2"), put("c", vec![7; 100_000])]).unwrap();
    store.apply(&[Write { key: b"a".to_vec(), value: None }, put("b", "3"), put("", "")]).unwrap();
    drop(store);
    let (_store, pairs) = open(&place).unwrap();
    let expected = [(vec![], vec![]), (b"b".to_vec(), b"3".to_vec()), (b"c".to_vec(), vec![7; 100_000])];
    assert_eq!(pairs, expected);
    assert_eq!(fs::metadata(place.file()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_cannot_be_used_is_refused_with_the_way_out() {
    let place = Place::new();
    let (mut store, _) = open(&place).unwrap();
    store.apply(&[put("a", vec![1; 20_000])]).unwrap();
    let twice = refused(&place);
    assert!(twice.contains("in use by another process"), "{twice}");
    drop(store);

    let stranger = Store::open(&place.file(), "ffff").map(|_| ()).unwrap_err().to_string();
    assert!(stranger.contains(ME) && stranger.contains("bring back the identity"), "{stranger}");

    let whole = fs::read(place.file()).unwrap();
    let damaged = |bytes: &[u8]| {
        fs::write(place.file(), bytes).unwrap();
        let error = refused(&place);
        assert!(error.contains("damaged") && error.contains("--restored"), "{error}");
    };
    damaged(b"");
    damaged(b"no database at all, though as long as the beginning of one would be");
    damaged(&whole[..whole.len() / 2]);
    damaged(&whole[..100]);

    let (mut store, _) = {
        fs::remove_file(place.file()).unwrap();
        open(&place).unwrap()
    };
    let db = store.db.take().unwrap();
    let transaction = db.begin_write().unwrap();
    transaction.open_table(ABOUT).unwrap().insert(FORMAT, b"2".as_slice()).unwrap();
    transaction.commit().unwrap();
    drop((db, store));
    let newer = refused(&place);
    assert!(newer.contains("newer meshd (format 2, this one knows 1)"), "{newer}");

    fs::remove_file(place.file()).unwrap();
    fs::create_dir(place.file()).unwrap();
    refused(&place);
}

/// Bits that turn over on the disk are found, or do no harm; never is a changed pair given out.
#[test]
fn no_damaged_pair_is_given_out() {
    let place = Place::new();
    let (mut store, _) = open(&place).unwrap();
    let mut states = vec![Vec::new()];
    for round in 0..3u8 {
        store.apply(&[put(&format!("key {round}"), vec![round; 3000])]).unwrap();
        states.push(store.pairs.clone().into_iter().collect());
    }
    drop(store);
    let whole = fs::read(place.file()).unwrap();
    let mut found = 0;
    for at in (0..whole.len().min(64 * 1024)).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(place.file(), &bytes).unwrap();
        match open(&place) {
            Ok((_, pairs)) => assert!(states.contains(&pairs), "byte {at} changed what is read"),
            Err(_) => found += 1,
        }
    }
    assert!(found > 0);
}

/// Needs no root: refused by mode bits; as root, by a file system that takes no writes.
#[test]
fn a_directory_that_takes_no_writes() {
    let place = Place::mounted("size=1m,mode=0700");
    let (mut store, _) = open(&place).unwrap();
    store.apply(&[put("a", "1")]).unwrap();
    drop(store);
    place.remount("ro");
    let error = refused(&place);
    assert!(error.contains("cannot be written") && error.contains("--state-dir"), "{error}");
    place.remount("rw");
    fs::remove_file(place.file()).unwrap();
    place.remount("ro");
    let error = refused(&place);
    assert!(error.contains("cannot be written"), "{error}");
}

/// A disk that is full: nothing is half done, and once there is room again the same write succeeds.
#[test]
fn a_full_disk_and_room_again() {
    let place = Place::mounted("size=4m,mode=0700");
    let (mut store, _) = open(&place).unwrap();
    store.apply(&[put("a", "1")]).unwrap();
    let ballast = place.path().join("ballast");
    let mut left = 64 * 1024 * 1024;
    while left > 1024 {
        // The file grows until the system refuses, then by less and less.
        let grown = std::fs::OpenOptions::new().create(true).append(true).open(&ballast);
        if io::Write::write_all(&mut grown.unwrap(), &vec![1; left]).is_err() {
            left /= 2;
        }
    }
    let big = [put("b", vec![2; 300_000]), put("a", "2")];
    for _ in 0..3 {
        let error = store.apply(&big).unwrap_err().to_string();
        assert!(error.contains("the disk is full") && error.contains("free some space"), "{error}");
    }
    fs::remove_file(ballast).unwrap();
    store.apply(&big).unwrap();
    drop(store);
    let (_, pairs) = open(&place).unwrap();
    assert_eq!(pairs, [(b"a".to_vec(), b"2".to_vec()), (b"b".to_vec(), vec![2; 300_000])]);
}

#[test]
fn the_keeper_reports_each_write_and_finishes_before_it_ends() {
    let place = Place::new();
    let (store, _) = open(&place).unwrap();
    let (reports, reported) = mpsc::channel();
    let keeper = Keeper::start(store, Box::new(move |seq, result| reports.send((seq, result)).unwrap())).unwrap();
    for seq in 1..=10 {
        keeper.keep(seq, vec![put(&format!("{seq:02}"), "x")]).unwrap();
    }
    drop(keeper);
    let told: Vec<(u64, Result<(), String>)> = reported.try_iter().collect();
    assert_eq!(told, (1..=10).map(|seq| (seq, Ok(()))).collect::<Vec<_>>());
    assert_eq!(open(&place).unwrap().1.len(), 10);
}

/// Prints how long a commit takes here, with 1,000 pairs in the file.
#[test]
fn how_long_a_commit_takes() {
    let place = Place::new();
    let (mut store, _) = open(&place).unwrap();
    let many: Vec<Write> = (0..1000).map(|at| put(&format!("lease {at:06}"), [1; 60])).collect();
    store.apply(&many).unwrap();
    let mut times: Vec<Duration> = (0..300)
        .map(|at| {
            let write = [put(&format!("lease {:06}", 2000 + at), [2; 60])];
            let start = Instant::now();
            store.apply(&write).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    let size = fs::metadata(place.file()).unwrap().len();
    println!("commit with sync: median {:?}, 99 % {:?}; file {size} bytes", times[150], times[297]);
}
