//! `meshctl watch`: the status screen each second. On a terminal it redraws in place, and `q` or Ctrl-C ends it; elsewhere it prints one after
//! the other.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use meshnet_proto::api::Status;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::client::{Client, Failure};
use super::render::status;
use super::render::text::clean;
use super::run::{emit, style};

/// Until `count` screens were shown, or someone ends it.
pub async fn run(client: &Client, count: Option<u64>, as_json: bool) -> Result<(), Failure> {
    // The first question is asked before the screen changes, so that "no meshd" is an ordinary line.
    let mut answer = client.get::<Status>("/v1/status").await?;
    let live = !as_json && io::stdout().is_terminal() && io::stdin().is_terminal();
    let screen = if live { Some(Screen::open()?) } else { None };
    // One key is all we ever wait for; further ones wait in the reader thread, which ends with the process.
    let (key, mut keys) = mpsc::channel(1);
    if live {
        std::thread::spawn(move || read_keys(&key));
    }
    let local = |error: io::Error| Failure::Local(error.to_string());
    let mut stop = signal(SignalKind::terminate()).map_err(local)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(local)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(local)?;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut shown = 0;
    let mut lost: Option<Failure> = None;
    loop {
        match (&screen, &lost) {
            (Some(screen), _) => screen.draw(&answer, lost.as_ref())?,
            (None, Some(_)) => return lost.map_or(Ok(()), Err),
            (None, None) if as_json => emit(&(serde_json::to_string(&answer).map_err(|e| local(e.into()))? + "\n"))?,
            (None, None) => emit(&(status::screen(style(), &answer) + "\n"))?,
        }
        shown += 1;
        if count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        tokio::select! {
            _ = ticks.tick() => {}
            Some(()) = keys.recv(), if live => return Ok(()),
            _ = stop.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        }
        // A restart of meshd is just what one watches for: the screen waits for it.
        match client.get::<Status>("/v1/status").await {
            Ok(status) => (answer, lost) = (status, None),
            Err(failure) => lost = Some(failure),
        }
    }
}

fn read_keys(key: &mpsc::Sender<()>) {
    for byte in io::stdin().lock().bytes() {
        // Ctrl-C and Ctrl-D arrive as bytes too while the terminal is ours.
        if matches!(byte, Ok(b'q' | b'Q' | 3 | 4) | Err(_)) {
            break;
        }
    }
    let _ = key.blocking_send(());
}

/// The terminal while it is ours; dropping it gives it back as it was.
struct Screen {
    before: Termios,
}

impl Screen {
    fn open() -> Result<Screen, Failure> {
        let fail = |error: rustix::io::Errno| Failure::Local(format!("terminal: {error}"));
        let before = tcgetattr(io::stdin()).map_err(fail)?;
        let mut own = before.clone();
        own.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        own.special_codes[SpecialCodeIndex::VMIN] = 1;
        own.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Now, &own).map_err(fail)?;
        let screen = Screen { before };
        emit(ENTER)?;
        Ok(screen)
    }

    fn draw(&self, status: &Status, lost: Option<&Failure>) -> Result<(), Failure> {
        let size = tcgetwinsize(io::stdout()).ok();
        let rows = size.map(|size| usize::from(size.ws_row)).filter(|rows| *rows > 2).unwrap_or(24);
        let mut lines: Vec<String> = Vec::new();
        if let Some(failure) = lost {
            lines.push(format!("! {}; what follows is from before", clean(&failure.to_string())));
        }
        lines.extend(status::screen(style(), status).lines().map(str::to_owned));
        if lines.len() >= rows {
            lines.truncate(rows - 2);
            lines.push("…".into());
        }
        lines.push("q ends".into());
        // Each line clears its rest, the last one all below: no flicker from a cleared screen.
        let body = lines.join("\x1b[0m\x1b[K\r\n");
        emit(&format!("\x1b[H{body}\x1b[K\x1b[J"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
        let _ = emit(LEAVE);
    }
}

const PERIOD: Duration = Duration::from_secs(1);
/// Other screen, no cursor, no line wrap.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
