use std::path::PathBuf;

use meshnet_core::ipam::Write;
use meshnet_proto::wire::ipam::Span;

use super::*;
use crate::daemon::claims::Claim;
use crate::daemon::config;

struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("meshnet-peer-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Place(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn state(&self) -> StateDir {
        StateDir::open(&self.0).unwrap()
    }
}

fn settings(arguments: &[&str]) -> Settings {
    let arguments = ["meshd", "--no-secret"].iter().chain(arguments).map(Into::into);
    match config::load(arguments, []).unwrap() {
        config::Request::Run(settings) => *settings,
        config::Request::Print(text) => panic!("{text}"),
    }
}

fn lease(last: u8) -> LeaseLine {
    let address = u32::from_be_bytes([10, 32, 0, last]);
    let subnet = Span { first: 0x0a20_0000, len: 1 << 20 };
    LeaseLine { owner: format!("c{last}"), address, subnet, unconfirmed: false }
}

fn claim(last: u8) -> Claim {
    Claim::from(&lease(last))
}

#[test]
fn a_peer_stays_the_same_while_its_addresses_are_there() {
    let place = Place::new("same");
    let state = place.state();
    let mut first = begin(&settings(&[]), &state).unwrap();
    let write = Write { key: b"k".to_vec(), value: Some(b"v".to_vec()) };
    first.store.as_mut().unwrap().apply(&[write]).unwrap();
    let id = first.id;
    drop(first);
    let second = begin(&settings(&[]), &state).unwrap();
    assert_eq!((second.id, second.kept), (id, vec![(b"k".to_vec(), b"v".to_vec())]));
    drop(second.store);

    std::fs::remove_file(state.addresses_file()).unwrap();
    let off = begin(&settings(&["--ipam-range", "none"]), &state).unwrap();
    assert!(off.id == id && off.store.is_none(), "without addresses nothing is lost");
    let third = begin(&settings(&[]), &state).unwrap();
    assert!(third.id != id && third.kept.is_empty(), "who forgot what it gave out is another peer");
    assert!(place.names().contains(&format!("identity.lost-{}", id.brief())), "{:?}", place.names());
}

/// The file of addresses of another peer is refused: a copied file must not make two owners.
#[test]
fn addresses_of_another_peer_are_refused() {
    let (one, two) = (Place::new("one"), Place::new("two"));
    let ids = [&one, &two].map(|place| begin(&settings(&[]), &place.state()).unwrap().id);
    std::fs::copy(one.state().addresses_file(), two.state().addresses_file()).unwrap();
    let error = begin(&settings(&[]), &two.state()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(&format!("belongs to the peer {}", ids[0])), "{error}");
}

#[test]
fn a_removed_peer_comes_back_as_a_new_one_with_claims() {
    let place = Place::new("removed");
    let state = place.state();
    let id = begin(&settings(&[]), &state).unwrap().id;
    let error = finish(End::Removed(vec![lease(5), lease(6)]), &state, id).unwrap_err().to_string();
    assert!(error.contains("declared this one") && error.contains("2 running containers"), "{error}");
    assert_eq!(error.lines().count(), 1);
    let brief = id.brief();
    for name in ["claims.json".into(), format!("identity.removed-{brief}"), format!("ipam.redb.removed-{brief}")] {
        assert!(place.names().contains(&name), "{name}: {:?}", place.names());
    }
    let next = begin(&settings(&[]), &state).unwrap();
    assert!(next.id != id && next.kept.is_empty());
    assert_eq!(state.claims(), [claim(5), claim(6)]);
}

/// The process ends between any two of the steps: the next start finishes them, with a new identity and all claims.
#[test]
fn a_removal_that_is_cut_short() {
    for step in 0..3 {
        let place = Place::new(&format!("cut-{step}"));
        let state = place.state();
        let id = begin(&settings(&[]), &state).unwrap().id;
        note(&state, &[lease(5)]).unwrap();
        let aside = |name: &str| {
            std::fs::rename(place.0.join(name), place.0.join(format!("{name}.removed-{}", id.brief()))).unwrap();
        };
        if step > 0 {
            aside("ipam.redb");
        }
        if step > 1 {
            aside("identity");
        }
        let next = begin(&settings(&[]), &state).unwrap();
        // With both files still there it is told again by the others that it is gone.
        assert_eq!(next.id == id, step == 0, "step {step}");
        assert_eq!(state.claims(), [claim(5)]);
    }
}

#[test]
fn who_left_leaves_no_identity() {
    let place = Place::new("left");
    let state = place.state();
    let id = begin(&settings(&[]), &state).unwrap().id;
    finish(End::Left, &state, id).unwrap();
    assert!(!state.has_identity() && !state.addresses_file().exists());
    assert_ne!(begin(&settings(&[]), &state).unwrap().id, id);
}

#[test]
fn an_old_copy_becomes_a_new_peer_even_when_its_addresses_are_damaged() {
    let place = Place::new("restored");
    let state = place.state();
    let id = begin(&settings(&["--restored"]), &state).unwrap().id;
    let restored = begin(&settings(&["--restored"]), &state).unwrap().id;
    assert_ne!(restored, id);
    std::fs::write(state.addresses_file(), "rubbish").unwrap();
    let error = begin(&settings(&[]), &state).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("--restored"), "{error}");
    assert_ne!(begin(&settings(&["--restored"]), &state).unwrap().id, restored);
    assert_eq!(begin(&settings(&[]), &state).unwrap().kept, []);
}
