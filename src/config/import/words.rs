//! The words of the files of Heartbeat and Keepalived, with their places.

use std::path::Path;

use super::super::diagnostic::{Diagnostic, DiagnosticKind, MAX_MESSAGES, shown};
use super::super::source::{SourceMap, Span};
use super::super::syntax::Word;

/// One file that is imported: its text and what is wrong with it.
pub struct Source<'a> {
    sources: &'a mut SourceMap,
    /// What it is called in messages.
    kind: &'static str,
    file: u32,
    pub errors: Vec<Diagnostic>,
}

impl<'a> Source<'a> {
    /// Reads a file; `kind` is what it is called in messages.
    pub fn read(
        sources: &'a mut SourceMap,
        path: &Path,
        kind: &'static str,
    ) -> Result<Source<'a>, Diagnostic> {
        let file = sources.read(path)?;
        Ok(Source {
            sources,
            kind,
            file,
            errors: Vec::new(),
        })
    }

    pub fn error(&mut self, kind: DiagnosticKind, span: Span) {
        if self.errors.len() < MAX_MESSAGES {
            self.errors
                .push(Diagnostic::new(kind).at(self.sources.locate(span)));
        }
    }

    /// `FILE:LINE`, for a note.
    pub fn place(&self, span: Span) -> String {
        let at = self.sources.locate(span);
        format!("{}:{}", at.file, at.line)
    }

    /// Reports a word that is not among `known`.
    pub fn unknown(&mut self, word: &Word, known: &[&str]) {
        let kind = DiagnosticKind::Unknown {
            word: shown(&word.text),
            section: self.kind.to_owned(),
        };
        if self.errors.len() < MAX_MESSAGES {
            let diagnostic = Diagnostic::new(kind)
                .at(self.sources.locate(word.span))
                .suggest(&word.text, known.iter().copied());
            self.errors.push(diagnostic);
        }
    }

    /// Reports a value that is not what it should be.
    pub fn bad(&mut self, option: &Word, value: &Word, expected: &str) {
        let kind = DiagnosticKind::BadValue {
            option: shown(&option.text),
            value: shown(&value.text),
            expected: expected.to_owned(),
        };
        self.error(kind, value.span);
    }

    /// The `index`th word of a line, which must be there.
    pub fn value<'w>(&mut self, line: &'w [Word], index: usize, needs: &str) -> Option<&'w Word> {
        let found = line.get(index);
        if let (None, Some(head)) = (found, line.first()) {
            let kind = DiagnosticKind::MissingValue {
                option: shown(&head.text),
                needs: needs.to_owned(),
            };
            self.error(kind, head.span);
        }
        found
    }

    /// The words of each line that has any. `comment` begins a comment where it begins a word; a
    /// line that ends in `\` goes on in the next.
    pub fn lines(&mut self, comment: &[char]) -> Vec<Vec<Word>> {
        let text = self.sources.text(self.file).to_owned();
        let mut lines: Vec<Vec<Word>> = Vec::new();
        let mut joined: Vec<Word> = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let content = line.trim_end();
            let goes_on = content.ends_with('\\');
            let content = content.strip_suffix('\\').unwrap_or(content);
            self.words(content, start, comment, &mut joined);
            start += line.len();
            if !goes_on && !joined.is_empty() {
                lines.push(std::mem::take(&mut joined));
            }
        }
        if !joined.is_empty() {
            lines.push(joined);
        }
        lines
    }

    /// Splits a line that begins at byte `start`.
    fn words(&mut self, line: &str, start: usize, comment: &[char], words: &mut Vec<Word>) {
        let mut rest = line.char_indices().peekable();
        while let Some((at, c)) = rest.next() {
            if c.is_whitespace() {
                continue;
            }
            if comment.contains(&c) {
                return;
            }
            let quoted = c == '"';
            let from = if quoted { at + 1 } else { at };
            let ends = |c: char| {
                if quoted {
                    c == '"'
                } else {
                    c.is_whitespace() || c == '"'
                }
            };
            let mut to = line.len();
            while let Some((here, c)) = rest.peek().copied() {
                if ends(c) {
                    to = here;
                    break;
                }
                rest.next();
            }
            if quoted && rest.next().is_none() {
                let span = Span::new(self.file, start + at, start + line.len());
                self.error(DiagnosticKind::UnterminatedString, span);
            }
            words.push(Word {
                text: line.get(from..to).unwrap_or("").to_owned(),
                quoted,
                span: Span::new(self.file, start + at, start + to + usize::from(quoted)),
            });
        }
    }
}
