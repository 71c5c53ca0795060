//! Other plugins, run as the runtime runs this one: found in `CNI_PATH`, the configuration on standard input, the answer on standard output.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

use super::call::Call;
use super::config::Version;
use super::error::{CniError, DELEGATE, INCOMPATIBLE_VERSION, INVALID_ENVIRONMENT, NO_CONTAINER};

/// Runs a verb of the plugin `name`. A plugin that does not know the version is asked in older ones, oldest that this plugin speaks last.
pub fn run(
    name: &str,
    verb: &str,
    call: &Call,
    conf: &Map<String, Value>,
    version: Version,
) -> Result<Value, CniError> {
    let program = find(name, call)?;
    let mut conf = conf.clone();
    let mut last = None;
    let older = ["1.0.0", "0.4.0", "0.3.1"].into_iter().filter(|older| *older < version.text());
    for version in std::iter::once(version.text()).chain(older) {
        conf.insert("cniVersion".into(), json!(version));
        match once(name, &program, verb, &conf) {
            Err(error) if error.code == INCOMPATIBLE_VERSION => drop(last.get_or_insert(error)),
            other => return other,
        }
    }
    Err(last.unwrap_or_else(|| CniError::new(DELEGATE, format!("{name}: no version fits"))))
}

/// Whether a refusal of GC or STATUS only says that the plugin is older than the verb: then it has nothing to say to it. Such plugins miss an environment
/// that these verbs do not have.
pub fn is_too_old(error: &CniError) -> bool {
    matches!(error.code, INCOMPATIBLE_VERSION | NO_CONTAINER | INVALID_ENVIRONMENT)
}

fn find(name: &str, call: &Call) -> Result<PathBuf, CniError> {
    let found = call.path.iter().map(|dir| dir.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let dirs: Vec<String> = call.path.iter().map(|dir| dir.display().to_string()).collect();
        CniError::new(DELEGATE, format!("the plugin {name} is not in CNI_PATH ({})", dirs.join(":")))
    })
}

fn once(name: &str, program: &PathBuf, verb: &str, conf: &Map<String, Value>) -> Result<Value, CniError> {
    let failed = |error: &dyn std::fmt::Display| CniError::new(DELEGATE, format!("{name}: {error}"));
    // Its environment is ours: the runtime's.
    let mut child = Command::new(program)
        .env("CNI_COMMAND", verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let input = serde_json::to_vec(conf).map_err(|error| failed(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading has its reasons: what it answers counts.
        let _ = stdin.write_all(&input);
    }
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    let value: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    if output.status.success() {
        return Ok(value.unwrap_or(Value::Null));
    }
    let said = value.as_ref().and_then(|value| CniError::of_plugin(name, value));
    Err(said.unwrap_or_else(|| failed(&output.status)))
}
