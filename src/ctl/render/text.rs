//! The small things: colour, width, harmless names, figures for people, columns.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Whether to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Escape sequences are welcome.
    pub colour: bool,
}

/// How a piece of text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Paint {
    #[default]
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
}

impl Style {
    /// The text with its escape sequences, if wanted.
    pub fn paint(self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Plain => return text.to_owned(),
            Paint::Bold => 1,
            Paint::Dim => 2,
            Paint::Red => 31,
            Paint::Green => 32,
            Paint::Yellow => 33,
        };
        if self.colour && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Text from elsewhere without anything that moves the cursor, changes colours, turns the writing direction or hides.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|letter| match letter.width() {
            Some(1 | 2) if !is_direction(letter) => letter,
            _ => char::REPLACEMENT_CHARACTER,
        })
        .collect()
}

fn is_direction(letter: char) -> bool {
    matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Cells of a terminal that the text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text cut to so many cells, with … where something is missing.
pub fn cut(text: &str, cells: usize) -> String {
    if width(text) <= cells {
        return text.to_owned();
    }
    let mut used = 1;
    let mut short = String::new();
    for letter in text.chars() {
        used += letter.width().unwrap_or(0);
        if used > cells {
            break;
        }
        short.push(letter);
    }
    short.push('…');
    short
}

/// `1,234,567`.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.2 GB`.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            return if unit == "B" || value >= 99.95 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} PB")
}

/// `45 s`, `3 min`, `2 h 5 min`, `4 d 2 h`.
pub fn age(seconds: u64) -> String {
    let pair = |big: u64, big_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big} {big_unit}"),
        _ => format!("{big} {big_unit} {small} {small_unit}"),
    };
    match seconds {
        0..=89 => format!("{seconds} s"),
        90..=3_599 => format!("{} min", seconds / 60),
        3_600..=86_399 => pair(seconds / 3_600, "h", seconds / 60 % 60, "min"),
        _ => pair(seconds / 86_400, "d", seconds / 3_600 % 24, "h"),
    }
}

/// `0.41 ms`; nothing measured: `-`.
pub fn rtt(ms: f64) -> String {
    match ms {
        _ if !ms.is_finite() || ms <= 0.0 => "-".into(),
        _ if ms < 9.995 => format!("{ms:.2} ms"),
        _ if ms < 99.95 => format!("{ms:.1} ms"),
        _ => format!("{ms:.0} ms"),
    }
}

/// `1 peer`, `2 peers`.
pub fn counted(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{} {one}s", number(n as u64)) }
}

/// One cell of a table. Its text is made harmless here.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    /// With a colour.
    pub fn new(text: impl AsRef<str>, paint: Paint) -> Cell {
        Cell { text: clean(text.as_ref()), paint }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell::new(text, Paint::Plain)
    }
}

/// A column: its title, its greatest width, and on which side the text stands.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Above it.
    pub title: &'static str,
    /// Longer text is cut.
    pub max: usize,
    /// For figures.
    pub right: bool,
}

/// A column of words.
pub const fn words(title: &'static str, max: usize) -> Column {
    Column { title, max, right: false }
}

/// A column of figures.
pub const fn figures(title: &'static str) -> Column {
    Column { title, max: 24, right: true }
}

/// Rows in aligned columns, two spaces apart, each line at most `line` cells.
pub fn columns(style: Style, columns: &[Column], rows: &[Vec<Cell>], indent: usize, line: usize) -> String {
    let mut widths: Vec<usize> = columns.iter().map(|column| width(column.title)).collect();
    for row in rows {
        for ((cell, column), wide) in row.iter().zip(columns).zip(&mut widths) {
            *wide = (*wide).max(width(&cell.text).min(column.max));
        }
    }
    // What is too wide for the line is taken from the widest words; figures are never cut.
    let all = |widths: &[usize]| indent + widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
    while all(&widths) > line {
        let widest = (widths.iter_mut().zip(columns)).filter(|(wide, column)| !column.right && **wide > WORDS_MIN);
        let Some((wide, _)) = widest.max_by_key(|(wide, _)| **wide) else { break };
        *wide -= 1;
    }
    let titles: Vec<Cell> = columns.iter().map(|column| Cell::new(column.title, Paint::Dim)).collect();
    let mut text = String::new();
    for row in std::iter::once(&titles).chain(rows) {
        let mut out = " ".repeat(indent);
        // Blanks are owed until something follows, so that no line ends in them.
        let mut owed = 0;
        for ((cell, column), &wide) in row.iter().zip(columns).zip(&widths) {
            let shown = cut(&cell.text, wide);
            let blank = wide - width(&shown);
            let lead = if column.right { blank } else { 0 };
            if !shown.is_empty() {
                out.push_str(&" ".repeat(owed + lead));
                out.push_str(&style.paint(cell.paint, &shown));
                owed = blank - lead + 2;
            } else {
                owed += wide + 2;
            }
        }
        text.push_str(&out);
        text.push('\n');
    }
    text
}

/// A column of words keeps so many cells, on however narrow a line.
const WORDS_MIN: usize = 12;
/// What fits an ordinary terminal beside nothing else.
pub const LINE: usize = 100;
/// Cells of a peer's name in a table.
pub const NAME: usize = 24;
