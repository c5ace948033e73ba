//! Configuration files in memory: their text, spans into it, and the files an `include` names.
//!
//! A [`SourceMap`] owns every file that was read for one configuration and lives as long as the
//! parse; a [`Span`] is an index into it and is turned into a [`Location`], which owns all that a
//! message shows, before the map goes away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostic, DiagnosticKind};

/// Larger files are refused: no configuration is, and a device or a log given by mistake must not
/// fill the memory.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

/// Names of one directory that a glob looks at; more are refused.
const MAX_GLOB_MATCHES: usize = 4096;

/// A byte range of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    file: u32,
    start: u32,
    end: u32,
}

impl Span {
    /// Bytes `start..end` of file number `file`.
    pub fn new(file: u32, start: usize, end: usize) -> Span {
        Span {
            file,
            start: start as u32,
            end: end as u32,
        }
    }

    /// From the start of this span to the end of `other` in the same file.
    pub fn to(self, other: Span) -> Span {
        Span {
            end: other.end.max(self.end),
            ..self
        }
    }

    /// Bytes `from..to` of what it covers.
    pub fn part(self, from: usize, to: usize) -> Span {
        Span {
            start: self.start + from as u32,
            end: self.start + to as u32,
            ..self
        }
    }

    /// The empty place right after this span.
    pub fn after(self) -> Span {
        Span {
            start: self.end,
            ..self
        }
    }
}

/// Where something stands, for a message: owns what is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// As given on the command line or by the include.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line, without its end.
    pub text: String,
    /// Characters to mark, at least 1.
    pub width: usize,
}

/// One file.
#[derive(Clone, Debug)]
struct SourceFile {
    name: String,
    text: String,
    /// Byte offset of the start of each line.
    lines: Vec<usize>,
}

/// All files of one configuration.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    files: Vec<SourceFile>,
}

impl SourceMap {
    /// An empty map.
    pub fn new() -> SourceMap {
        SourceMap::default()
    }

    /// Adds a text under a name; returns its number.
    pub fn add(&mut self, name: &str, text: String) -> u32 {
        let mut lines = vec![0];
        lines.extend(text.match_indices('\n').map(|(at, _)| at + 1));
        self.files.push(SourceFile {
            name: name.to_owned(),
            text,
            lines,
        });
        (self.files.len() - 1) as u32
    }

    /// Reads a file into the map; returns its number.
    pub fn read(&mut self, path: &Path) -> Result<u32, Diagnostic> {
        let name = path.display().to_string();
        let fail = |error: io::Error| {
            Diagnostic::new(DiagnosticKind::Unreadable {
                file: name.clone(),
                error: error.to_string(),
            })
        };
        // The type is looked at before the open: opening a FIFO would wait for a writer.
        let meta = fs::metadata(path).map_err(fail)?;
        if !meta.is_file() {
            return Err(fail(io::Error::other("not a regular file")));
        }
        if meta.len() > MAX_FILE_BYTES {
            return Err(fail(io::Error::other("larger than 4 MiB")));
        }
        let bytes = fs::read(path).map_err(fail)?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(self.add(&name, text)),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let file = self.add(&name, text);
                Err(
                    Diagnostic::new(DiagnosticKind::NotUtf8).at(self.locate(Span::new(
                        file,
                        at,
                        at + 1,
                    ))),
                )
            }
        }
    }

    /// The text of a file; empty for a number that is not in the map.
    pub fn text(&self, file: u32) -> &str {
        self.files
            .get(file as usize)
            .map_or("", |file| file.text.as_str())
    }

    /// Line of the start of a span, from 0: tells whether two words stand on one line.
    pub fn line(&self, span: Span) -> usize {
        self.files.get(span.file as usize).map_or(0, |file| {
            file.lines
                .partition_point(|start| *start <= span.start as usize)
                .saturating_sub(1)
        })
    }

    /// Turns a span into what a message shows.
    pub fn locate(&self, span: Span) -> Location {
        let Some(file) = self.files.get(span.file as usize) else {
            return Location {
                file: String::new(),
                line: 1,
                column: 1,
                text: String::new(),
                width: 1,
            };
        };
        let line = self.line(span);
        let start = file.lines.get(line).copied().unwrap_or(0);
        let rest = file.text.get(start..).unwrap_or("");
        let text = rest.split('\n').next().unwrap_or("").trim_end_matches('\r');
        let chars_before = |offset: usize| {
            text.char_indices()
                .take_while(|(at, _)| start + at < offset)
                .count()
        };
        let before = chars_before(span.start as usize);
        Location {
            file: file.name.clone(),
            line: line + 1,
            column: before + 1,
            text: text.to_owned(),
            width: chars_before(span.end as usize)
                .saturating_sub(before)
                .max(1),
        }
    }
}

/// True if a pattern has any of the characters that make it a glob.
pub fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// The files that match a glob, sorted by name. No match is an empty list; a directory that cannot
/// be read counts as empty unless it exists.
pub fn expand_glob(pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let part = component.as_os_str().to_string_lossy();
        let mut next = Vec::new();
        for base in &found {
            if is_glob(&part) {
                match_names(base, &part, &mut next)?;
            } else {
                next.push(base.join(component));
            }
        }
        if next.len() > MAX_GLOB_MATCHES {
            return Err(io::Error::other("the pattern matches too many files"));
        }
        found = next;
    }
    found.retain(|path| path.is_file());
    found.sort();
    Ok(found)
}

fn match_names(base: &Path, pattern: &str, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let directory = if base.as_os_str().is_empty() {
        Path::new(".")
    } else {
        base
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let pattern: Vec<char> = pattern.chars().collect();
    for entry in entries {
        let name = entry?.file_name();
        let text: Vec<char> = name.to_string_lossy().chars().collect();
        // As in a shell, a leading dot must be written.
        let hidden = text.first() == Some(&'.') && pattern.first() != Some(&'.');
        if !hidden && glob_matches(&pattern, &text) {
            found.push(base.join(name));
        }
    }
    Ok(())
}

/// Matches `*`, `?` and `[a-z]`, `[!a-z]`. Backtracks only to the last star, so the time is at
/// most pattern times text.
fn glob_matches(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(c) = text.get(t) {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, t));
            p += 1;
        } else if let Some(next) = match_one(pattern, p, *c) {
            p = next;
            t += 1;
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            p = after;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern
        .get(p..)
        .is_none_or(|rest| rest.iter().all(|c| *c == '*'))
}

/// Matches one character at `p`; the place after the element that matched.
fn match_one(pattern: &[char], p: usize, c: char) -> Option<usize> {
    match pattern.get(p)? {
        '?' => Some(p + 1),
        '[' => match match_class(pattern, p, c) {
            Some((end, true)) => Some(end),
            Some((_, false)) => None,
            // An unclosed bracket stands for itself.
            None => (c == '[').then_some(p + 1),
        },
        other => (*other == c).then_some(p + 1),
    }
}

/// A bracket expression at `p`: the place after it and whether `c` is in it.
fn match_class(pattern: &[char], p: usize, c: char) -> Option<(usize, bool)> {
    let negated = matches!(pattern.get(p + 1), Some('!' | '^'));
    let first = p + 1 + usize::from(negated);
    let mut at = first;
    let mut hit = false;
    loop {
        let low = *pattern.get(at)?;
        if low == ']' && at > first {
            return Some((at + 1, hit != negated));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some('-'), Some(high)) if *high != ']' => {
                hit |= (low..=*high).contains(&c);
                at += 3;
            }
            _ => {
                hit |= low == c;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        let pattern: Vec<char> = pattern.chars().collect();
        let text: Vec<char> = text.chars().collect();
        glob_matches(&pattern, &text)
    }

    #[test]
    fn globs_match_as_a_shell_does() {
        assert!(matches("*.res", "r0.res"));
        assert!(matches("r?.res", "r0.res"));
        assert!(matches("r[0-9].res", "r7.res"));
        assert!(matches("r[!0-9].res", "rx.res"));
        assert!(matches("*a*b*", "xxaxxbxx"));
        assert!(matches("[", "["));
        assert!(matches("*", ""));
        assert!(!matches("*.res", "r0.conf"));
        assert!(!matches("r[!0-9].res", "r7.res"));
        assert!(!matches("r[0-9", "r7"));
        assert!(!matches("a*b", "a"));
    }

    #[test]
    fn a_glob_lists_files_in_order_and_hides_dot_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.res", "a.res", ".c.res", "d.conf"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("e.res")).unwrap();
        let found = expand_glob(&dir.path().join("*.res")).unwrap();
        assert_eq!(found, [dir.path().join("a.res"), dir.path().join("b.res")]);
        assert!(expand_glob(&dir.path().join("no/*.x")).unwrap().is_empty());
    }

    #[test]
    fn a_span_is_located_in_characters() {
        let mut sources = SourceMap::new();
        let file = sources.add("f", "one\n  tw\u{f6} x\r\n".to_owned());
        let location = sources.locate(Span::new(file, 11, 12));
        assert_eq!((location.line, location.column), (2, 7));
        assert_eq!(location.text, "  tw\u{f6} x");
        let end = sources.locate(Span::new(file, 14, 14));
        assert_eq!((end.line, end.column, end.width), (3, 1, 1));
    }

    #[test]
    fn a_device_or_a_missing_file_is_refused() {
        let mut sources = SourceMap::new();
        assert!(sources.read(Path::new("/dev/null")).is_err());
        assert!(sources.read(Path::new("/no/such/file")).is_err());
    }
}
