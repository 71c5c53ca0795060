//! What no compiler checks: which room may use which, the lengths of files and functions, what must not be left in, and that the wire specification was
//! re-read when the wire changed. Each offence is printed as `file:line: reason`.
//!
//! The table of rooms is that of `src/README.md`; change both together. `Source::new` blanks comments and strings, so that words in them do not count.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rooms, and what each may use.
type Table = &'static [(&'static str, &'static [&'static str])];

/// A room of `src/` and what it may use of ours: other rooms, `core`, `proto`.
const ROOMS: Table = &[
    ("sys", &[]),
    ("buf", &["sys"]),
    ("tap", &["sys", "buf", "core", "proto"]),
    ("udp", &["sys", "buf", "core", "proto"]),
    ("quic", &["core", "proto"]),
    ("dataplane", &["sys", "buf", "tap", "udp", "core", "proto"]),
    ("netlink", &["sys", "proto"]),
    ("store", &["core"]),
    ("api", &["telemetry", "proto"]),
    ("kube", &["core", "proto"]),
    ("ctl", &["telemetry", "proto"]),
    ("telemetry", &["core", "proto"]),
    ("cni", &["netlink", "sys", "ctl", "telemetry", "proto"]),
    (
        "daemon",
        &[
            "sys",
            "buf",
            "tap",
            "udp",
            "quic",
            "dataplane",
            "netlink",
            "api",
            "kube",
            "ctl",
            "telemetry",
            "store",
            "core",
            "proto",
        ],
    ),
    ("bin", &["ctl", "cni", "telemetry", "daemon", "proto"]),
    ("build", &[]),
];

/// A room of `src/core/` and which others it may use. All may use `proto`.
const CORE_ROOMS: Table = &[
    ("time", &[]),
    ("counters", &[]),
    ("identity", &[]),
    ("session", &["counters", "time"]),
    ("topology", &["identity", "time"]),
    ("gossip", &["topology", "identity", "time", "node"]),
    ("ipam", &["topology", "time", "node"]),
    ("route", &["topology", "time"]),
    ("peer", &["session", "fib", "node", "time"]),
    ("fib", &["session", "counters", "fdb", "route", "time", "forward"]),
    ("fdb", &["fib", "counters", "time"]),
    ("forward", &["fib", "fdb", "session", "counters", "node", "time"]),
    (
        "node",
        &[
            "time", "counters", "identity", "session", "topology", "gossip", "route", "peer", "fib", "fdb", "forward",
            "ipam",
        ],
    ),
    (
        "sim",
        &[
            "time", "counters", "identity", "session", "topology", "gossip", "route", "peer", "fib", "fdb", "forward",
            "ipam", "node",
        ],
    ),
];

/// What the core must not reach for: clocks, randomness, files, sockets, threads, the environment, the terminal.
const NOT_IN_CORE: &[&str] = &[
    "std::fs",
    "std::thread",
    "std::env",
    "std::process",
    "std::io",
    "Instant::now",
    "SystemTime",
    "UdpSocket",
    "TcpStream",
    "println!",
    "eprintln!",
    "thread_rng",
    "from_os_rng",
    "tokio::",
    "tracing::",
];

/// Crates that do IO: not below the core, however deep.
const NOT_BELOW_CORE: &[&str] = &[
    "tokio",
    "mio",
    "quinn",
    "quinn-proto",
    "quinn-udp",
    "rustls",
    "socket2",
    "rustix",
    "nix",
    "polling",
    "async-io",
    "smol",
    "hyper",
    "axum",
    "rtnetlink",
    "netlink-sys",
    "netlink-proto",
    "getrandom",
    "tracing",
];

/// Left in by mistake.
const LEFTOVERS: &[&str] = &["dbg!(", "todo!(", "unimplemented!(", "#[ignore"];

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_CHARS_MAX: usize = 160;

/// One source file: as it is, and with comments and strings blanked (line by line the same).
struct Source {
    path: String,
    text: String,
    code: String,
    /// Lines before the trailing test module; 0 when the whole file is tests.
    lines: usize,
}

type Offences = Vec<String>;

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let code = code_only(text);
        let tests = path.ends_with("/tests.rs") || path.contains("/tests/") || path.starts_with("tests/");
        let all = text.lines().count();
        let lines = if tests { 0 } else { trailing_tests(&code).unwrap_or(all) };
        Source { path: path.to_owned(), text: text.to_owned(), code, lines }
    }

    fn offence(&self, line: usize, reason: impl std::fmt::Display) -> String {
        format!("{}:{}: {reason}", self.path, line)
    }

    /// Where in the code `word` stands by itself, as line numbers from 1.
    fn lines_with(&self, word: &str) -> Vec<usize> {
        let found = self.code.lines().zip(1..).filter(|(line, _)| has_word(line, word));
        found.map(|(_, number)| number).collect()
    }
}

/// Line of the `#[cfg(test)]` that begins the last item of the file, a test module, counted from 0.
fn trailing_tests(code: &str) -> Option<usize> {
    let lines: Vec<&str> = code.lines().collect();
    let at = lines.iter().rposition(|line| *line == "#[cfg(test)]")?;
    let module = lines.get(at + 1..)?.iter().find(|line| !line.starts_with("#["))?;
    let end = lines.iter().rposition(|line| !line.trim().is_empty())?;
    let closes = module.ends_with(';') || lines[at + 1..end].iter().all(|line| *line != "}");
    (module.starts_with("mod ") && closes).then_some(at)
}

/// Comments, strings and character literals become blanks; line breaks stay.
fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped(&chars, at);
        if end == at {
            code.push(chars[at]);
            at += 1;
            continue;
        }
        code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    code
}

/// The end of the comment, string or character literal that begins at `at`; `at` itself when none does.
fn skipped(chars: &[char], at: usize) -> usize {
    let next = |ahead: usize| chars.get(at + ahead).copied().unwrap_or(' ');
    let until =
        |from: usize, stop: &dyn Fn(usize) -> bool| (from..chars.len()).find(|i| stop(*i)).unwrap_or(chars.len());
    let in_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match (chars[at], next(1)) {
        ('/', '/') => until(at, &|i| chars[i] == '\n'),
        ('/', '*') => (until(at + 2, &|i| chars[i] == '/' && chars[i - 1] == '*' && i > at + 2) + 1).min(chars.len()),
        ('r', '"' | '#') if !in_word || chars[at - 1] == 'b' => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if next(1 + hashes) != '"' {
                return at;
            }
            let closes = |i: usize| chars[i] == '"' && (1..=hashes).all(|h| chars.get(i + h) == Some(&'#'));
            (until(at + 2 + hashes, &closes) + 1 + hashes).min(chars.len())
        }
        ('"', _) => {
            let mut end = at + 1;
            while end < chars.len() && chars[end] != '"' {
                end += if chars[end] == '\\' { 2 } else { 1 };
            }
            (end + 1).min(chars.len())
        }
        ('\'', '\\') => (until(at + 3, &|i| chars[i] == '\'') + 1).min(chars.len()),
        ('\'', _) if next(2) == '\'' => at + 3,
        _ => at,
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_word) && word.starts_with(is_word);
        let after = line[at + word.len()..].chars().next().is_some_and(is_word) && word.ends_with(is_word);
        !before && !after
    })
}

/// Every name that stands right after `prefix` in the code, with its line; `prefix{a, b::c}` gives each name of the group.
fn names_after(code: &str, prefix: &str) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let line = code[..at].lines().count().max(1) + usize::from(code[..at].ends_with('\n'));
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push((line, rest.chars().take_while(|c| is_word(*c)).collect()));
            continue;
        };
        let mut depth = 0;
        let mut name = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => names.push((line, std::mem::take(&mut name))),
                c if depth == 0 && !c.is_whitespace() => name.push(c),
                _ => {}
            }
        }
        names.push((line, name));
    }
    let first = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
    names.into_iter().map(|(line, name)| (line, first(&name))).filter(|(_, name)| !name.is_empty()).collect()
}

/// Rule: a room uses only what the table allows it.
fn check_rooms(source: &Source) -> Offences {
    let Some((table, room)) = room_of(&source.path) else { return Vec::new() };
    let Some((_, allowed)) = table.iter().find(|(name, _)| *name == room) else {
        return vec![
            source.offence(1, format!("room '{room}' is not in the table of tests/tidy.rs and src/README.md")),
        ];
    };
    let is_room = |name: &str| table.iter().any(|(room, _)| *room == name);
    let mut used = Vec::new();
    for prefix in ["crate::", "meshnet::", "super::super::", "super::"] {
        used.extend(names_after(&source.code, prefix).into_iter().filter(|(_, name)| is_room(name)));
    }
    if std::ptr::eq(table, ROOMS) {
        for (crate_name, short) in [("meshnet_core", "core"), ("meshnet_proto", "proto")] {
            used.extend(source.lines_with(crate_name).into_iter().map(|line| (line, short.to_owned())));
        }
    }
    let before_tests = |line: &usize| *line <= source.lines;
    used.retain(|(line, name)| name != room && !allowed.contains(&name.as_str()) && before_tests(line));
    used.sort();
    used.dedup();
    used.into_iter().map(|(line, name)| source.offence(line, format!("room '{room}' may not use '{name}'"))).collect()
}

/// The room that a file belongs to, and the table that it is in.
fn room_of(path: &str) -> Option<(Table, &str)> {
    let (table, rest) = match path.strip_prefix("src/core/") {
        Some(rest) => (CORE_ROOMS, rest),
        None => (ROOMS, path.strip_prefix("src/")?),
    };
    let room = rest.split('/').next()?.trim_end_matches(".rs");
    // `src/core/tests`: users of the core, outside of it.
    (!["lib", "tests"].contains(&room)).then_some((table, room))
}

/// Rule: the core computes and does nothing else.
fn check_core(source: &Source) -> Offences {
    if !source.path.starts_with("src/core/") {
        return Vec::new();
    }
    let mut offences = Vec::new();
    for word in NOT_IN_CORE {
        let lines = source.lines_with(word).into_iter().filter(|line| *line <= source.lines);
        offences.extend(lines.map(|line| source.offence(line, format!("'{word}' in the core, which does no IO"))));
    }
    offences
}

/// Rule: `unsafe` lives in `src/sys` alone, each block with its reason.
fn check_unsafe(source: &Source) -> Offences {
    let product = source.path.starts_with("src/") || source.path.starts_with("proto/src/");
    if !product || source.path.starts_with("src/sys/") {
        return Vec::new();
    }
    source.lines_with("unsafe").into_iter().map(|line| source.offence(line, "unsafe outside src/sys")).collect()
}

/// Rule: files, functions and lines have their longest.
fn check_lengths(source: &Source) -> Offences {
    let mut offences = Vec::new();
    let product = source.path.starts_with("src/") || source.path.starts_with("proto/src/");
    if product && source.lines > FILE_LINES_MAX {
        offences.push(
            source.offence(source.lines, format!("{} lines without tests, {FILE_LINES_MAX} at most", source.lines)),
        );
    }
    for (line, text) in (1..).zip(source.text.lines()) {
        if text.chars().count() > LINE_CHARS_MAX {
            offences.push(
                source
                    .offence(line, format!("a line of {} characters, {LINE_CHARS_MAX} at most", text.chars().count())),
            );
        }
    }
    let functions = functions(&source.code).into_iter().filter(|(line, _)| product && *line <= source.lines);
    for (line, length) in functions.filter(|(_, length)| *length > FUNCTION_LINES_MAX) {
        if !is_dispatch(&source.text, line) {
            let reason =
                format!("a function of {length} lines, {FUNCTION_LINES_MAX} at most (or '// dispatch' above it)");
            offences.push(source.offence(line, reason));
        }
    }
    offences
}

/// Whether a line `// dispatch` stands above the function at `line`, its attributes and documentation.
fn is_dispatch(text: &str, line: usize) -> bool {
    let above: Vec<&str> = text.lines().take(line - 1).map(str::trim).collect();
    let mut heading = above.iter().rev().take_while(|line| line.starts_with("//") || line.starts_with("#["));
    heading.any(|line| line.starts_with("// dispatch"))
}

/// Each function with a body: the line of its `fn`, and how many lines it has to the closing brace.
fn functions(code: &str) -> Vec<(usize, usize)> {
    let mut functions = Vec::new();
    let mut line = 1;
    for (at, c) in code.char_indices() {
        line += usize::from(c == '\n');
        let starts = code[at..].starts_with("fn ") && !code[..at].chars().next_back().is_some_and(is_word);
        let Some(length) = starts.then(|| body_lines(&code[at..])).flatten() else { continue };
        functions.push((line, length));
    }
    functions
}

/// Lines from here to the brace that closes the first one opened; none when a semicolon comes before it.
fn body_lines(code: &str) -> Option<usize> {
    let (mut depth, mut nested, mut lines) = (0, 0, 1);
    for c in code.chars() {
        match c {
            '\n' => lines += 1,
            '(' | '[' => nested += 1,
            ')' | ']' => nested -= 1,
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(lines);
                }
            }
            ';' if depth == 0 && nested == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Rule: nothing is left in that was meant to go, and no tabs.
fn check_leftovers(source: &Source) -> Offences {
    let mut offences = Vec::new();
    for word in LEFTOVERS {
        offences
            .extend(source.lines_with(word).into_iter().map(|line| source.offence(line, format!("{word} left in"))));
    }
    let tabs = (1..).zip(source.text.lines()).filter(|(_, text)| text.contains('\t'));
    offences.extend(tabs.map(|(line, _)| source.offence(line, "a tab")));
    offences
}

/// Rule: every limit says why it is what it is.
fn check_limits(source: &Source) -> Offences {
    if source.path != "proto/src/limits.rs" {
        return Vec::new();
    }
    let lines: Vec<&str> = source.text.lines().collect();
    let bare = (0..lines.len()).filter(|at| lines[*at].contains("const "));
    let bare = bare.filter(|at| *at == 0 || !lines[at - 1].starts_with("///"));
    bare.map(|at| source.offence(at + 1, "a limit without the reason for its number")).collect()
}

/// Rule: nothing names the place where it was made.
fn check_origins(source: &Source) -> Offences {
    let words = [concat!("..", "/shared"), concat!("/work", "/")];
    let found = (1..).zip(source.text.lines()).filter(|(_, text)| words.iter().any(|word| text.contains(word)));
    found.map(|(line, _)| source.offence(line, "names a directory that no clone has")).collect()
}

/// 64-bit FNV-1a.
fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files with one of these ends below a directory of the repository, by path; build directories and hidden ones left out.
fn files(under: &str, ends: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut waiting = vec![root().join(under)];
    while let Some(path) = waiting.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                waiting.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        } else if ends.iter().any(|end| name.ends_with(end)) {
            let relative = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
            found.push(Source::new(&relative, &std::fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn code_files() -> Vec<Source> {
    ["src", "proto", "tests", "examples"].into_iter().flat_map(|under| files(under, &[".rs"])).collect()
}

/// Fails with one line for each offence.
fn none(offences: Offences) {
    let mut text = String::new();
    for offence in &offences {
        writeln!(text, "{offence}").unwrap();
    }
    assert!(offences.is_empty(), "{} offences:\n{text}", offences.len());
}

fn check_all(check: fn(&Source) -> Offences) {
    let sources = code_files();
    assert!(sources.len() > 30, "the sources were not found");
    none(sources.iter().flat_map(check).collect());
}

#[test]
fn rooms_use_what_the_table_allows() {
    check_all(check_rooms);
}

#[test]
fn the_map_names_every_room() {
    let map = std::fs::read_to_string(root().join("src/README.md")).expect("src/README.md is the map");
    let rows: Vec<&str> = map.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let shells = ROOMS.iter().map(|(room, _)| room.to_string()).filter(|room| !["bin", "build"].contains(&&**room));
    // Values that all of the core shares are no rooms.
    let core = CORE_ROOMS.iter().map(|(room, _)| *room).filter(|room| !["time", "counters"].contains(room));
    let rooms: Vec<String> =
        shells.chain(core.map(|room| format!("core/{room}"))).chain(["proto".to_owned()]).collect();
    let missing = rooms.iter().filter(|room| !rows.contains(&room.as_str()));
    let mut offences: Offences =
        missing.map(|room| format!("src/README.md:1: room '{room}' is not on the map")).collect();
    let unknown = rows.iter().filter(|row| !rooms.iter().any(|room| room == *row));
    offences
        .extend(unknown.map(|row| format!("src/README.md:1: '{row}' is on the map, but in no table of tests/tidy.rs")));
    none(offences);
}

#[test]
fn the_core_does_no_io() {
    check_all(check_core);
}

#[test]
fn nothing_below_the_core_does_io() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "-p", "meshnet-core", "-e", "normal", "--prefix", "none"])
        .current_dir(root())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&tree.stdout);
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    assert!(text.contains("meshnet-proto"), "{text}");
    let found = text.lines().filter_map(|line| line.split(' ').next()).filter(|name| NOT_BELOW_CORE.contains(name));
    none(found.map(|name| format!("src/core/Cargo.toml:1: {name} is below the core")).collect());
}

#[test]
fn unsafe_is_in_sys_alone() {
    check_all(check_unsafe);
}

#[test]
fn files_functions_and_lines_are_short() {
    check_all(check_lengths);
}

#[test]
fn nothing_is_left_in() {
    check_all(check_leftovers);
}

#[test]
fn every_limit_has_a_reason() {
    check_all(check_limits);
}

#[test]
fn nothing_names_the_place_where_it_was_made() {
    let ends = [".rs", ".md", ".toml", ".sh", ".yaml", ".yml", ".txt"];
    let trees = ["src", "proto", "tests", "examples", "deploy"].into_iter().filter(|tree| root().join(tree).exists());
    let mut sources: Vec<Source> = trees.flat_map(|tree| files(tree, &ends)).collect();
    for name in ["README.md", "Cargo.toml", ".ci/run"] {
        let text = std::fs::read_to_string(root().join(name)).unwrap_or_default();
        sources.push(Source::new(name, &text));
    }
    none(sources.iter().flat_map(check_origins).collect());
}

#[test]
fn the_specification_was_read_again() {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let in_wire = |source: &Source| Path::new(&source.path).parent() == Some(Path::new("proto/src/wire"));
    let wire = files("proto/src/wire", &[".rs"]).into_iter().filter(in_wire);
    for source in wire.chain(files("proto/src/codec.rs", &[".rs"])) {
        hash = fnv1a(hash, source.text.as_bytes());
    }
    let spec = std::fs::read_to_string(root().join("proto/SPEC.md")).unwrap();
    let recorded = spec.split("wire-hash ").nth(1).and_then(|rest| rest.get(..16)).unwrap_or("none");
    assert_eq!(
        recorded,
        format!("{hash:016x}"),
        "proto/SPEC.md:1: proto/src/wire or codec.rs changed. Read the change against SPEC.md, correct the text and the vectors where bytes changed, then \
         put the hash on the right into SPEC.md"
    );
}

/// Each rule against a line that breaks it and one that does not: the tests above can fail.
mod the_rules_see_offences {
    use super::*;

    #[track_caller]
    fn lines(check: fn(&Source) -> Offences, path: &str, text: &str, expected: &[usize]) {
        let offences = check(&Source::new(path, text));
        let found: Vec<usize> = offences.iter().map(|o| o.split(':').nth(1).unwrap().parse().unwrap()).collect();
        assert_eq!(found, expected, "{offences:?}");
    }

    #[test]
    fn rooms() {
        lines(check_rooms, "src/tap/mod.rs", "//! crate::udp\nuse crate::udp::X;\nuse crate::sys;\n", &[2]);
        lines(check_rooms, "src/udp/a.rs", "use crate::{\n    buf::{sys, tap},\n    quic::Y,\n};\n", &[1]);
        lines(
            check_rooms,
            "src/sys/mod.rs",
            "\nuse meshnet_core::time::Time;\nfn f() { meshnet_proto::id::x() }\n",
            &[2, 3],
        );
        lines(
            check_rooms,
            "src/api/mod.rs",
            "use super::daemon;\nlet s = \"crate::daemon\";\nmycrate::daemon();\n",
            &[1],
        );
        lines(check_rooms, "src/api/b.rs", "#[cfg(test)]\nmod tests {\n    use crate::daemon;\n}\n", &[]);
        lines(check_rooms, "src/bin/meshd.rs", "use meshnet::sys;\nuse meshnet::daemon;\n", &[1]);
        lines(check_rooms, "src/core/route/mod.rs", "use crate::gossip::X;\nuse crate::topology::Graph;\n", &[1]);
        lines(check_rooms, "src/cellar/mod.rs", "\n", &[1]);
        lines(check_rooms, "src/daemon/mod.rs", "use crate::{tap, udp, quic, api};\n", &[]);
    }

    #[test]
    fn core_and_unsafe() {
        lines(check_core, "src/core/node.rs", "// std::fs\nuse std::fs::File;\nlet x = Instant::now();\n", &[2, 3]);
        lines(check_core, "src/core/node/tests.rs", "use std::fs::File;\n", &[]);
        lines(check_core, "src/tap/mod.rs", "use std::fs::File;\n", &[]);
        lines(
            check_unsafe,
            "src/tap/mod.rs",
            "#![deny(unsafe_code)]\n// unsafe\nlet s = \"unsafe\";\nunsafe { f() }\n",
            &[4],
        );
        lines(check_unsafe, "src/sys/mod.rs", "unsafe { f() }\n", &[]);
        lines(check_unsafe, "proto/src/id.rs", "unsafe fn f() {}\n", &[1]);
    }

    #[test]
    fn lengths() {
        let long = |lines: usize| format!("fn f() {{\n{}}}\n", "    x();\n".repeat(lines - 2));
        lines(check_lengths, "src/tap/mod.rs", &long(70), &[]);
        lines(check_lengths, "src/tap/mod.rs", &format!("trait T {{\n    fn g(a: [u8; 4]);\n}}\n{}", long(71)), &[4]);
        lines(
            check_lengths,
            "src/tap/mod.rs",
            &format!("// dispatch: one arm each\n#[inline]\n/// Doc.\n{}", long(71)),
            &[],
        );
        let tests = long(71).replace('\n', "\n    ");
        lines(check_lengths, "src/tap/mod.rs", &format!("#[cfg(test)]\nmod tests {{\n    {tests}\n}}\n"), &[]);
        lines(check_lengths, "src/tap/tests.rs", &long(71), &[]);
        lines(check_lengths, "src/tap/mod.rs", &"x();\n".repeat(601), &[601]);
        let tested = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "x();\n".repeat(599), "    x();\n".repeat(50));
        lines(check_lengths, "src/tap/mod.rs", &tested, &[]);
        // A test module in the middle hides nothing below it.
        lines(check_lengths, "src/tap/mod.rs", &format!("{tested}fn g() {{\n}}\n"), &[654]);
        lines(check_lengths, "tests/x.rs", &format!("// {}\n// {}\n", "ä".repeat(157), "x".repeat(158)), &[2]);
    }

    #[test]
    fn leftovers_limits_and_origins() {
        lines(
            check_leftovers,
            "tests/x.rs",
            "dbg!(1);\n// todo!(\nlet s = r#\"todo!(\"#;\ntodo!();\nmytodo!();\n#[ignore = \"slow\"]\n",
            &[1, 4, 6],
        );
        lines(
            check_leftovers,
            "src/a.rs",
            "let c = '\"'; unimplemented!();\n\tx();\nlet l: &'a str = '\\'';dbg!(x);\n",
            &[3, 1, 2],
        );
        lines(check_limits, "proto/src/limits.rs", "/// Why.\npub const A: u8 = 1;\npub const B: u8 = 2;\n", &[3]);
        lines(check_origins, "README.md", concat!("see ..", "/shared/DESIGN.md\nnetwork/\n"), &[1]);
    }

    #[test]
    fn hash() {
        // From the reference implementation's test suite.
        assert_eq!(fnv1a(0xcbf2_9ce4_8422_2325, b"foobar"), 0x8594_4171_f739_67e8);
    }
}
