//! The reference plugin `loopback`, for machines that lack it: runtimes call it for every container and start none without.

use std::sync::Arc;

use serde_json::{Value, json};

use super::call::{Call, Verb};
use super::config::Conf;
use super::error::{CHECK_FAILED, CniError};
use super::result::{Interface, Ip, Made, compose};
use crate::netlink;

/// What goes to standard output.
pub fn answer(call: &Call, conf: &Conf) -> Result<Value, CniError> {
    match call.verb {
        Verb::Add => {
            set(call, true)?;
            if let Some(prev) = &conf.prev {
                let mut prev = prev.clone();
                prev.insert("cniVersion".into(), json!(conf.version.text()));
                return Ok(Value::Object(prev));
            }
            Ok(compose(conf, &made(call)))
        }
        Verb::Del => {
            // A namespace that is gone has no interface to bring down.
            if !call.netns.is_empty() {
                let _ = set(call, false);
            }
            Ok(Value::Null)
        }
        Verb::Check => {
            let netns = Arc::new(netlink::attach::open_namespace(&call.netns)?);
            match on_runtime(async || netlink::attach::loopback(&netns, None).await)? {
                true => Ok(Value::Null),
                false => Err(CniError::new(CHECK_FAILED, "the loopback interface is down")),
            }
        }
        Verb::Gc | Verb::Status | Verb::Version => Ok(Value::Null),
    }
}

fn set(call: &Call, up: bool) -> Result<(), CniError> {
    let netns = Arc::new(netlink::attach::open_namespace(&call.netns)?);
    on_runtime(async || netlink::attach::loopback(&netns, Some(up)).await).map(drop)
}

fn on_runtime<T>(work: impl AsyncFnOnce() -> Result<T, netlink::Error>) -> Result<T, CniError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| CniError::new(super::error::KERNEL, format!("the async runtime: {error}")))?;
    Ok(runtime.block_on(work())?)
}

fn made(call: &Call) -> Made {
    let address = |text: &str| text.parse().ok().map(|address| Ip { address, gateway: None });
    Made {
        interfaces: vec![Interface {
            name: "lo".into(),
            mac: "00:00:00:00:00:00".into(),
            mtu: 0,
            sandbox: Some(call.netns.clone()),
        }],
        carrier: 0,
        ips: ["127.0.0.1/8", "::1/128"].into_iter().filter_map(address).collect(),
        ..Made::default()
    }
}
