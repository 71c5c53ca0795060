use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use meshnet_proto::PeerId;

use super::*;

/// A directory that goes with the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(what: &str) -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("meshnet-{what}-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn one_line(error: &StateError, wanted: &str, path: &Path) {
    let text = error.to_string();
    assert!(text.contains(wanted) && text.contains(path.to_str().unwrap()) && !text.contains('\n'), "{text}");
}

fn saved() -> Saved {
    Saved {
        targets: vec!["one.example:6783".into()],
        forgotten: vec!["two.example".into()],
        known: vec![(PeerId([3; 16]), vec!["[2001:db8::1]:6783".parse().unwrap()])],
    }
}

#[test]
fn a_peer_is_the_same_after_a_restart() {
    let scratch = Scratch::new("state");
    let path = scratch.path().join("not/yet/there");
    let first = StateDir::open(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    assert_eq!(first.load_saved(), Saved::default());
    let seed = first.identity().unwrap();
    assert_eq!(first.identity().unwrap(), seed);
    assert_eq!(mode(&path.join("identity")), 0o600);
    assert_eq!(first.next_incarnation(1000).unwrap(), 1000);
    first.save(&saved()).unwrap();
    drop(first);

    let second = StateDir::open(&path).unwrap();
    assert_eq!(second.identity().unwrap(), seed);
    assert_eq!(second.load_saved(), saved());
    assert_eq!(second.next_incarnation(5).unwrap(), 1001, "a clock set back does not matter");
    assert_eq!(second.next_incarnation(2000).unwrap(), 2000);
    let mut files: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["identity", "incarnation", "lock", "saved.json"], "nothing is left over");

    let other = Scratch::new("state");
    assert_ne!(StateDir::open(other.path()).unwrap().identity().unwrap(), seed);
}

#[test]
fn the_first_incarnation_is_not_zero() {
    let scratch = Scratch::new("state");
    assert_eq!(StateDir::open(scratch.path()).unwrap().next_incarnation(0).unwrap(), 1);
}

#[test]
fn a_second_meshd_is_refused_until_the_first_is_gone() {
    let scratch = Scratch::new("state");
    let first = StateDir::open(scratch.path()).unwrap();
    let refused = StateDir::open(scratch.path()).unwrap_err();
    assert!(matches!(refused, StateError::InUse(..)));
    one_line(&refused, &format!("in use by another meshd (process {})", std::process::id()), scratch.path());
    drop(first);
    assert!(StateDir::open(scratch.path()).is_ok());
}

#[test]
fn a_torn_or_foreign_identity_is_refused_and_left_alone() {
    let scratch = Scratch::new("state");
    let state = StateDir::open(scratch.path()).unwrap();
    state.identity().unwrap();
    let path = scratch.path().join("identity");
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[25] ^= 1;
    let torn = (0..good.len() - 1).map(|length| good[..length].to_vec());
    let foreign = [flipped, vec![0; good.len()], vec![0xff; 32], b"-----BEGIN PRIVATE KEY-----\n".to_vec()];
    for bad in torn.chain(foreign) {
        fs::write(&path, &bad).unwrap();
        let error = state.identity().unwrap_err();
        one_line(&error, "bring it back from a backup", &path);
        assert_eq!(fs::read(&path).unwrap(), bad, "never overwritten");
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    one_line(&state.identity().unwrap_err(), "cannot be read", &path);
    fs::remove_dir(&path).unwrap();
    fs::write(&path, &good).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(state.identity().is_ok());
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn broken_files_that_can_be_missed_are_set_aside() {
    let scratch = Scratch::new("state");
    let state = StateDir::open(scratch.path()).unwrap();
    for bad in ["", "{", "[]", "\0\0\0\0", r#"{"targets":3}"#] {
        fs::write(scratch.path().join("saved.json"), bad).unwrap();
        assert_eq!(state.load_saved(), Saved::default());
        assert_eq!(fs::read_to_string(scratch.path().join("saved.json.bad")).unwrap(), bad);
        assert!(!scratch.path().join("saved.json").exists());
    }
    for bad in ["", "x", "-1", "18446744073709551615"] {
        fs::write(scratch.path().join("incarnation"), bad).unwrap();
        assert_eq!(state.next_incarnation(7).unwrap(), 7, "{bad}");
        assert_eq!(fs::read_to_string(scratch.path().join("incarnation.bad")).unwrap(), bad);
    }
}

#[test]
fn a_place_that_is_no_directory_is_named() {
    let scratch = Scratch::new("state");
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    one_line(&StateDir::open(&file).unwrap_err(), "is not a directory", &file);
    one_line(&StateDir::open(&file.join("below")).unwrap_err(), "is not a directory", &file);
    // Not even root writes there, and no chmod tells.
    let readonly = Path::new("/proc/meshnet-state");
    assert!(StateDir::open(readonly).is_err());
}

#[test]
fn a_write_that_fails_is_one_line_and_leaves_the_old_file() {
    let scratch = Scratch::new("state");
    let state = StateDir::open(scratch.path()).unwrap();
    state.save(&saved()).unwrap();
    // In the way of the new file, and not to be removed as a file.
    let way = scratch.path().join(".saved.json.new");
    fs::create_dir(&way).unwrap();
    one_line(&state.save(&Saved::default()).unwrap_err(), "cannot write saved.json", scratch.path());
    assert_eq!(state.load_saved(), saved());
    fs::remove_dir(&way).unwrap();
    fs::write(&way, "half of a fi").unwrap();
    state.save(&Saved::default()).unwrap();
    assert_eq!(state.load_saved(), Saved::default(), "what a killed meshd left is no hindrance");
    assert!(!way.exists());

    for (code, wanted) in [
        (libc::ENOSPC, "disk is full"),
        (libc::EDQUOT, "disk is full"),
        (libc::EROFS, "cannot be written"),
        (libc::EACCES, "cannot be written"),
    ] {
        one_line(
            &state_error(scratch.path(), "cannot write x", &io::Error::from_raw_os_error(code)),
            wanted,
            scratch.path(),
        );
    }
}

/// The process that [`a_kill_at_any_point_leaves_old_or_new`] starts and kills: this test binary again.
#[test]
fn child_that_writes_until_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let state = StateDir::open(Path::new(&path)).unwrap();
    state.identity().unwrap();
    for number in 0.. {
        state.next_incarnation(0).unwrap();
        let long = format!("{number}").repeat(10_000);
        state.save(&Saved { targets: vec![long.clone(), long], ..Saved::default() }).unwrap();
    }
}

fn start(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon::state::tests::child_that_writes_until_killed"])
        .env(CHILD, directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_kill_at_any_point_leaves_old_or_new() {
    let scratch = Scratch::new("state");
    let mut seed = None;
    let mut last = 0;
    for round in 0..20u64 {
        let mut child = start(scratch.path());
        let begun = Instant::now();
        while !scratch.path().join("saved.json").exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the child writes");
            if child.try_wait().unwrap().is_some() {
                // Another test that starts a process right now holds our lock in its copy of us, for the moment until that becomes its program.
                child = start(scratch.path());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(500 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let state = StateDir::open(scratch.path()).expect("the lock falls with the process");
        let found = state.identity().unwrap();
        assert_eq!(*seed.get_or_insert(found), found);
        let incarnation = state.next_incarnation(0).unwrap();
        assert!(incarnation > last);
        last = incarnation;
        let saved = state.load_saved();
        assert_eq!(saved.targets.first(), saved.targets.get(1));
        for name in ["saved.json.bad", "incarnation.bad"] {
            assert!(!scratch.path().join(name).exists(), "{name}");
        }
        // So that the next round sees its child write.
        fs::remove_file(scratch.path().join("saved.json")).unwrap();
    }
}

const CHILD: &str = "MESHNET_TEST_STATE_CHILD";

#[test]
fn what_the_api_said_outlives_a_restart() {
    use crate::kube::{Keep, Kept, Left};
    let dir = Scratch::new("state");
    let kept = Kept {
        nodes: [("n1".to_owned(), vec!["10.0.0.1".parse().unwrap()])].into_iter().collect(),
        seen: [("0102030405060708".to_owned(), "n1".to_owned())].into_iter().collect(),
        left: Some(Left { peer: "x".into(), interfaces: vec![(7, "veth7".into())] }),
    };
    {
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!((state.cluster_secret().unwrap(), state.cluster()), (None, Kept::default()));
        state.keep_cluster_secret("a secret of the cluster\n").unwrap();
        state.keep(&kept).unwrap();
    }
    let state = StateDir::open(dir.path()).unwrap();
    assert_eq!(state.cluster_secret().unwrap().as_deref(), Some("a secret of the cluster"));
    assert_eq!(state.cluster(), kept);
    assert_eq!(mode(&dir.path().join("kubernetes-secret")), 0o600);
    fs::write(dir.path().join("kubernetes.json"), "{").unwrap();
    assert_eq!(state.cluster(), Kept::default());
    assert!(dir.path().join("kubernetes.json.bad").exists());
}

#[test]
fn a_successor_tells_that_it_waits_and_has_its_turn() {
    let dir = Scratch::new("state");
    let first = StateDir::open(dir.path()).unwrap();
    let path = dir.path().to_owned();
    let next = std::thread::spawn(move || StateDir::open_as_successor(&path, Duration::from_secs(60)).map(drop));
    let start = Instant::now();
    while !dir.path().join("successor").exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "nobody waits");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(first);
    next.join().unwrap().unwrap();
    assert!(!dir.path().join("successor").exists());
    let _first = StateDir::open(dir.path()).unwrap();
    let refused = StateDir::open_as_successor(dir.path(), Duration::from_millis(50)).unwrap_err();
    one_line(&refused, "is in use by another meshd", dir.path());
}
