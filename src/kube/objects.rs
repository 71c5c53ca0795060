//! The few fields of the API's objects that meshd reads, and the documents that it writes. All that is not named here is skipped.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meshnet_proto::{PeerId, ShortId};
use serde::Deserialize;
use serde_json::{Value, json};

/// The number of an address space.
pub type Space = [u8; 16];

/// What every object has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct RawNode {
    metadata: Meta,
    #[serde(default)]
    status: RawStatus,
}

#[derive(Default, Deserialize)]
struct RawStatus {
    #[serde(default)]
    addresses: Option<Vec<RawAddress>>,
    #[serde(default)]
    conditions: Option<Vec<RawCondition>>,
}

#[derive(Deserialize)]
struct RawAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Deserialize)]
struct RawCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: String,
}

/// A machine of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Of the object.
    pub name: String,
    /// Where other machines of the cluster reach it.
    pub addresses: Vec<IpAddr>,
    /// What its meshd wrote.
    pub mark: Mark,
    /// The condition `NetworkUnavailable`: status and reason.
    pub network: Option<(String, String)>,
}

/// What a meshd writes on its Node, as annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Which peer it is.
    pub peer: Option<PeerId>,
    /// No container of this machine has an address of an earlier peer.
    pub alone: bool,
    /// The address space that it belongs to.
    pub space: Option<Space>,
}

impl Mark {
    /// The peer, as addresses know it.
    pub fn short(&self) -> Option<ShortId> {
        self.peer.map(|peer| peer.short())
    }

    fn parse(annotations: &BTreeMap<String, String>) -> Mark {
        let get = |key: &str| annotations.get(key).map(String::as_str);
        Mark {
            peer: get(PEER).and_then(|text| text.parse().ok()),
            alone: get(ALONE) == Some("true"),
            space: get(SPACE).and_then(space),
        }
    }
}

impl Node {
    /// From the value of an object. The error says what is odd.
    pub fn parse(value: Value) -> Result<Node, String> {
        let raw: RawNode = serde_json::from_value(value).map_err(|error| format!("an odd Node: {error}"))?;
        if raw.metadata.name.is_empty() || raw.metadata.name.len() > NAME_MAX_BYTES {
            return Err("a Node without a name, or with one that is too long".into());
        }
        let internal = |address: RawAddress| (address.kind == "InternalIP").then(|| address.address.parse().ok())?;
        let network = |condition: RawCondition| {
            (condition.kind == "NetworkUnavailable").then_some((condition.status, condition.reason))
        };
        let addresses = raw.status.addresses.unwrap_or_default().into_iter().filter_map(internal);
        Ok(Node {
            name: raw.metadata.name,
            addresses: addresses.take(ADDRESSES_MAX).collect(),
            mark: Mark::parse(&raw.metadata.annotations.unwrap_or_default()),
            network: raw.status.conditions.unwrap_or_default().into_iter().find_map(network),
        })
    }
}

/// One page of a list of nodes.
#[derive(Debug)]
pub struct Page {
    /// Those that could be read.
    pub nodes: Vec<Node>,
    /// Where a watch goes on.
    pub version: String,
    /// Where the next page begins; empty: this was the last.
    pub next: String,
}

impl Page {
    /// From the answer to a list.
    pub fn parse(body: &[u8]) -> Result<Page, String> {
        #[derive(Deserialize)]
        struct List {
            metadata: Meta,
            #[serde(default)]
            items: Option<Vec<Value>>,
        }
        let list: List = serde_json::from_slice(body).map_err(|error| format!("an odd list of nodes: {error}"))?;
        let nodes = list.items.unwrap_or_default().into_iter().map(Node::parse).collect::<Result<_, _>>()?;
        Ok(Page { nodes, version: list.metadata.resource_version, next: list.metadata.next })
    }
}

/// One line of a watch.
#[derive(Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are said by the variant")]
pub enum Event {
    /// It is there, or changed.
    There { node: Box<Node>, version: String },
    /// It is deleted.
    Gone { name: String, version: String },
    /// Nothing but a newer place to go on from.
    Bookmark { version: String },
    /// The watch cannot go on from where it is: list again.
    Expired,
    /// Anything else that the API says.
    Failed(String),
}

impl Event {
    /// From a line.
    pub fn parse(line: &[u8]) -> Result<Event, String> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(rename = "type")]
            kind: String,
            object: Value,
        }
        #[derive(Deserialize)]
        struct Bare {
            metadata: Meta,
        }
        let raw: Raw = serde_json::from_slice(line).map_err(|error| format!("an odd line of the watch: {error}"))?;
        let meta = |value: &Value| {
            let bare = Bare::deserialize(value).map_err(|error| format!("an odd object of the watch: {error}"))?;
            Ok::<_, String>(bare.metadata)
        };
        Ok(match raw.kind.as_str() {
            "ADDED" | "MODIFIED" => {
                let version = meta(&raw.object)?.resource_version;
                Event::There { node: Box::new(Node::parse(raw.object)?), version }
            }
            "DELETED" => {
                let meta = meta(&raw.object)?;
                Event::Gone { name: meta.name, version: meta.resource_version }
            }
            "BOOKMARK" => Event::Bookmark { version: meta(&raw.object)?.resource_version },
            _ => match raw.object["code"].as_u64() {
                Some(410) => Event::Expired,
                _ => Event::Failed(super::client::plain(raw.object["message"].as_str().unwrap_or("no reason"))),
            },
        })
    }
}

/// A Secret or ConfigMap with one entry that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// For compare-and-set.
    pub version: String,
    /// The text; none: the object lacks it.
    pub text: Option<String>,
}

impl Entry {
    /// Of a ConfigMap.
    pub fn of_config_map(body: &[u8], key: &str) -> Result<Entry, String> {
        Entry::parse(body, key)
    }

    /// Of a Secret: its data is in base64.
    pub fn of_secret(body: &[u8], key: &str) -> Result<Entry, String> {
        let entry = Entry::parse(body, key)?;
        let decode = |text: String| {
            let bytes = STANDARD.decode(text.trim()).map_err(|_| "data that is not base64".to_owned())?;
            String::from_utf8(bytes).map_err(|_| "data that is not text".to_owned())
        };
        Ok(Entry { text: entry.text.map(decode).transpose()?, ..entry })
    }

    fn parse(body: &[u8], key: &str) -> Result<Entry, String> {
        #[derive(Deserialize)]
        struct Raw {
            metadata: Meta,
            #[serde(default)]
            data: Option<BTreeMap<String, String>>,
        }
        let raw: Raw = serde_json::from_slice(body).map_err(|error| format!("an odd object: {error}"))?;
        let text = raw.data.and_then(|mut data| data.remove(key));
        Ok(Entry { version: raw.metadata.resource_version, text })
    }
}

/// A Secret to create.
pub fn new_secret(namespace: &str, name: &str, key: &str, text: &str) -> Vec<u8> {
    let meta = json!({"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": "meshnet"}});
    let data = json!({key: STANDARD.encode(text)});
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque", "data": data}).to_string().into()
}

/// A ConfigMap to create, or with the version of the one that it replaces.
pub fn config_map(namespace: &str, name: &str, key: &str, text: &str, version: Option<&str>) -> Vec<u8> {
    let mut meta = json!({"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": "meshnet"}});
    if let Some(version) = version {
        meta["resourceVersion"] = version.into();
    }
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {key: text}}).to_string().into()
}

/// What a meshd writes on its Node: who it is, and whether the network works (none: left as it is). `now`: seconds of the clock.
pub fn node_patch(mark: &Mark, network: Option<bool>, now: u64) -> Vec<u8> {
    let space = mark.space.map_or_else(String::new, |space| hex(&space));
    let peer = mark.peer.map_or_else(String::new, |peer| peer.to_string());
    let mut patch = json!({"metadata": {"annotations": {PEER: peer, ALONE: mark.alone.to_string(), SPACE: space}}});
    if let Some(works) = network {
        let (status, reason, message) = match works {
            true => ("False", UP, "the pod network works on this node"),
            false => ("True", LEFT, "meshd left the mesh on this node"),
        };
        let time = rfc3339(now);
        patch["status"] = json!({"conditions": [{
            "type": "NetworkUnavailable", "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": time, "lastTransitionTime": time,
        }]});
    }
    patch.to_string().into()
}

/// A time as the API writes it.
fn rfc3339(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    // Days to date: H. Hinnant, "chrono-compatible low-level date algorithms", civil_from_days; years begin in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Digits of an address space's number.
pub fn hex(space: &Space) -> String {
    format!("{:032x}", u128::from_be_bytes(*space))
}

/// The number in 32 digits.
pub fn space(text: &str) -> Option<Space> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits { u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes) } else { None }
}

/// Annotations of a Node.
const PEER: &str = "meshnet/peer-id";
const ALONE: &str = "meshnet/alone";
const SPACE: &str = "meshnet/address-space";
/// Reason of the condition while the network works, and after this machine left.
pub const UP: &str = "MeshnetIsUp";
const LEFT: &str = "MeshnetLeft";
/// A name of DNS.
const NAME_MAX_BYTES: usize = 253;
/// Two families, and some to spare.
const ADDRESSES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_and_all_else_skipped() {
        let text = r#"{"kind":"Node","metadata":{"name":"n1","resourceVersion":"7","annotations":{"a":"b","meshnet/peer-id":
            "0e4a8d910e4a8d910e4a8d910e4a8d91","meshnet/alone":"true","meshnet/address-space":"000102030405060708090a0b0c0d0e0f"}},
            "spec":{"x":1},"status":{"images":[{"names":[]}],"addresses":[{"type":"Hostname","address":"n1"},
            {"type":"InternalIP","address":"10.0.0.1"},{"type":"ExternalIP","address":"192.0.2.1"},{"type":"InternalIP","address":"fd00::1"},
            {"type":"InternalIP","address":"nonsense"}],"conditions":[{"type":"Ready","status":"True"},
            {"type":"NetworkUnavailable","status":"False","reason":"MeshnetIsUp"}]}}"#;
        let node = Node::parse(serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(node.name, "n1");
        assert_eq!(node.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(node.mark.short(), Some(ShortId(0x0e4a_8d91_0e4a_8d91)));
        assert_eq!((node.mark.alone, node.mark.space.map(|s| s[15])), (true, Some(15)));
        assert_eq!(node.network, Some(("False".into(), "MeshnetIsUp".into())));
    }

    #[test]
    fn what_is_null_or_missing_is_empty() {
        let bare =
            json!({"metadata": {"name": "n1", "annotations": null}, "status": {"addresses": null, "conditions": null}});
        assert_eq!(Node::parse(bare).unwrap(), Node { name: "n1".into(), ..Node::default() });
        let odd = json!({"metadata": {"name": "n1", "annotations": {"meshnet/peer-id": "zz", "meshnet/address-space": "12"}}});
        assert_eq!(Node::parse(odd).unwrap().mark, Mark::default());
        for wrong in
            [json!({}), json!({"metadata": {"name": ""}}), json!({"metadata": {"name": "x".repeat(300)}}), json!(3)]
        {
            assert!(Node::parse(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lists_and_events() {
        let list = br#"{"metadata":{"resourceVersion":"9","continue":"abc"},"items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]}"#;
        let page = Page::parse(list).unwrap();
        assert_eq!((page.nodes.len(), page.version.as_str(), page.next.as_str()), (2, "9", "abc"));
        assert!(Page::parse(br#"{"metadata":{},"items":null}"#).unwrap().nodes.is_empty());
        assert!(Page::parse(b"{").is_err() && Page::parse(b"[]").is_err());
        let event = |text: &str| Event::parse(text.as_bytes());
        assert!(matches!(event(r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"5"}}}"#),
            Ok(Event::There { node, version }) if node.name == "a" && version == "5"));
        assert_eq!(
            event(r#"{"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"6"}}}"#),
            Ok(Event::Gone { name: "a".into(), version: "6".into() })
        );
        assert_eq!(
            event(r#"{"type":"BOOKMARK","object":{"kind":"Node","metadata":{"resourceVersion":"8"}}}"#),
            Ok(Event::Bookmark { version: "8".into() })
        );
        assert_eq!(
            event(r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410}}"#),
            Ok(Event::Expired)
        );
        assert_eq!(
            event(r#"{"type":"ERROR","object":{"message":"etcd is\naway","code":500}}"#),
            Ok(Event::Failed("etcd is away".into()))
        );
        assert!(
            event("{}").is_err() && event("nonsense").is_err() && event(r#"{"type":"ADDED","object":{}}"#).is_err()
        );
    }

    #[test]
    fn entries() {
        let secret = new_secret("kube-system", "meshnet", "secret", "mesh1-x");
        assert_eq!(Entry::of_secret(&secret, "secret").unwrap().text.as_deref(), Some("mesh1-x"));
        assert_eq!(Entry::of_secret(&secret, "else").unwrap().text, None);
        assert!(Entry::of_secret(br#"{"metadata":{},"data":{"secret":"%%"}}"#, "secret").is_err());
        let map = config_map("kube-system", "meshnet-genesis", "genesis", "{}", Some("12"));
        assert_eq!(Entry::of_config_map(&map, "genesis"), Ok(Entry { version: "12".into(), text: Some("{}".into()) }));
        assert_eq!(Entry::of_config_map(br#"{"metadata":{}}"#, "genesis").unwrap().text, None);
    }

    #[test]
    fn what_is_written_on_a_node_is_read_from_it() {
        let peer = PeerId([7; 16]);
        let mark = Mark { peer: Some(peer), alone: true, space: Some([9; 16]) };
        let mut patch: Value = serde_json::from_slice(&node_patch(&mark, Some(true), 1_795_000_000)).unwrap();
        patch["metadata"]["name"] = "n".into();
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "2026-11-18T11:06:40Z");
        let node = Node::parse(patch).unwrap();
        assert_eq!((node.mark, node.network), (mark, Some(("False".into(), UP.into()))));
        let left: Value = serde_json::from_slice(&node_patch(&mark, Some(false), 0)).unwrap();
        assert_eq!(left["status"]["conditions"][0]["status"], "True");
        assert!(serde_json::from_slice::<Value>(&node_patch(&mark, None, 0)).unwrap().get("status").is_none());
    }

    #[test]
    fn times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_735_689_599), "2024-12-31T23:59:59Z");
    }
}
