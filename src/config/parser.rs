//! Tokens to syntax tree, by recursive descent, and the reading of included files.
//!
//! A missing `;` before `}` or the end is reported and assumed, so that one message is given for
//! one mistake. A missing `;` before another line cannot be seen here (`a b` may be two words of
//! one statement): the reader sees it when a statement has too many words.

use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostic, DiagnosticKind, MAX_MESSAGES, shown};
use super::lexer::{Token, TokenKind, lex};
use super::source::{SourceMap, Span, expand_glob, is_glob};
use super::syntax::{Item, Word};

/// Deeper nesting is a mistake (the grammar needs 4) and would exhaust the stack.
const MAX_DEPTH: usize = 24;

/// Includes of includes.
const MAX_INCLUDES: usize = 16;

/// Words that begin a section at the top level and nowhere else.
const TOP_LEVEL: [&str; 3] = ["global", "common", "resource"];

/// Reads `path` and everything that it includes. Errors are appended to `errors`.
pub fn parse_file(sources: &mut SourceMap, path: &Path, errors: &mut Vec<Diagnostic>) -> Vec<Item> {
    let mut reading = Vec::new();
    match sources.read(path) {
        Ok(file) => {
            reading.push(identity(path));
            parse_source(sources, file, path, &mut reading, errors)
        }
        Err(error) => {
            errors.push(error);
            Vec::new()
        }
    }
}

/// Parses a text that is already in the map; includes are relative to `path`'s folder.
pub fn parse_text(
    sources: &mut SourceMap,
    file: u32,
    path: &Path,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Item> {
    parse_source(sources, file, path, &mut Vec::new(), errors)
}

/// The same file under two names is one file.
fn identity(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn parse_source(
    sources: &mut SourceMap,
    file: u32,
    path: &Path,
    reading: &mut Vec<PathBuf>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Item> {
    let (tokens, lex_errors) = lex(file, sources.text(file));
    let end = Span::new(file, sources.text(file).len(), sources.text(file).len());
    let mut parser = Parser {
        tokens: tokens.into_iter().peekable(),
        sources,
        end,
        open: Vec::new(),
        hint: None,
        errors: Vec::new(),
    };
    let mut items = Vec::new();
    parser.items(&mut items);
    // A lost quote takes braces and semicolons with it: what the parser misses says nothing more.
    if !lex_errors.is_empty() {
        parser.errors.clear();
    }
    for (kind, span) in lex_errors.into_iter().take(MAX_MESSAGES) {
        parser.error(kind, span);
    }
    errors.append(&mut parser.errors);

    let mut expanded = Vec::new();
    for item in items {
        if item.head.is("include") && item.body.is_none() {
            include(sources, &item, path, reading, errors, &mut expanded);
        } else {
            expanded.push(item);
        }
    }
    expanded
}

/// Replaces one `include` by what the files hold.
fn include(
    sources: &mut SourceMap,
    item: &Item,
    path: &Path,
    reading: &mut Vec<PathBuf>,
    errors: &mut Vec<Diagnostic>,
    items: &mut Vec<Item>,
) {
    let [pattern] = item.args.as_slice() else {
        let kind = DiagnosticKind::MissingValue {
            option: "include".to_owned(),
            needs: "one file name or pattern".to_owned(),
        };
        errors.push(Diagnostic::new(kind).at(sources.locate(item.span())));
        return;
    };
    let place = sources.locate(pattern.span);
    let unreadable = |file: &Path, error: String| {
        Diagnostic::new(DiagnosticKind::IncludeUnreadable {
            file: shown(&file.display().to_string()),
            error,
        })
        .at(place.clone())
    };
    let full = path.parent().unwrap_or(Path::new("")).join(&pattern.text);
    let files = if is_glob(&pattern.text) {
        match expand_glob(&full) {
            Ok(files) => files,
            Err(error) => return errors.push(unreadable(&full, error.to_string())),
        }
    } else {
        vec![full]
    };
    for file in files {
        let id = identity(&file);
        let kind = if reading.contains(&id) {
            // A glob that matches the including file itself is a habit, not a mistake.
            if is_glob(&pattern.text) {
                continue;
            }
            DiagnosticKind::IncludeCycle {
                file: shown(&file.display().to_string()),
            }
        } else if reading.len() >= MAX_INCLUDES {
            DiagnosticKind::IncludeTooDeep {
                limit: MAX_INCLUDES,
            }
        } else {
            match sources.read(&file) {
                Ok(number) => {
                    reading.push(id);
                    items.extend(parse_source(sources, number, &file, reading, errors));
                    reading.pop();
                }
                Err(refused) => errors.push(match *refused.kind {
                    DiagnosticKind::Unreadable { error, .. } => unreadable(&file, error),
                    kind => Diagnostic {
                        kind: Box::new(kind),
                        ..refused
                    },
                }),
            }
            continue;
        };
        errors.push(Diagnostic::new(kind).at(place.clone()));
    }
}

/// One file.
struct Parser<'a> {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    sources: &'a SourceMap,
    /// The place after the last character.
    end: Span,
    /// Heads of the sections that are open.
    open: Vec<Word>,
    /// A section that seems to stand inside one that should have been closed: that one, and where
    /// the inner one begins.
    hint: Option<(Word, Span)>,
    errors: Vec<Diagnostic>,
}

impl Parser<'_> {
    fn error(&mut self, kind: DiagnosticKind, span: Span) {
        if self.errors.len() < MAX_MESSAGES {
            self.errors
                .push(Diagnostic::new(kind).at(self.sources.locate(span)));
        }
    }

    /// Items up to the `}` of the innermost open section, which is taken, or the end.
    fn items(&mut self, items: &mut Vec<Item>) {
        loop {
            match self.tokens.peek().map(|token| (&token.kind, token.span)) {
                None => {
                    self.unclosed();
                    return;
                }
                Some((TokenKind::Semicolon, _)) => {
                    self.tokens.next();
                }
                Some((TokenKind::Close, span)) => {
                    self.tokens.next();
                    if !self.open.is_empty() {
                        return;
                    }
                    self.error(DiagnosticKind::UnexpectedClose, span);
                }
                Some((TokenKind::Open, span)) => {
                    self.error(DiagnosticKind::NamelessSection, span);
                    let nameless = Word {
                        text: String::new(),
                        quoted: true,
                        span,
                    };
                    self.section(nameless);
                }
                Some((TokenKind::Word(_) | TokenKind::Quoted(_), _)) => {
                    items.extend(self.item());
                }
            }
        }
    }

    /// One statement or section; `None` if it is skipped.
    fn item(&mut self) -> Option<Item> {
        let mut words = Vec::new();
        while let Some(token) = self
            .tokens
            .next_if(|token| matches!(token.kind, TokenKind::Word(_) | TokenKind::Quoted(_)))
        {
            let span = token.span;
            match token.kind {
                TokenKind::Word(text) => words.push(Word {
                    text,
                    quoted: false,
                    span,
                }),
                TokenKind::Quoted(text) => words.push(Word {
                    text,
                    quoted: true,
                    span,
                }),
                TokenKind::Open | TokenKind::Close | TokenKind::Semicolon => {}
            }
        }
        let skipped = words.first().is_some_and(|word| word.is("skip"));
        if skipped {
            words.remove(0);
        }
        let mut words = words.into_iter();
        let head = words.next();
        let args: Vec<Word> = words.collect();
        let body = self.body(head.as_ref(), &args);
        let head = head.filter(|_| !skipped)?;
        Some(Item { head, args, body })
    }

    /// What ends an item: `;`, or a section's body.
    fn body(&mut self, head: Option<&Word>, args: &[Word]) -> Option<Vec<Item>> {
        match self.tokens.peek().map(|token| (&token.kind, token.span)) {
            Some((TokenKind::Open, span)) => {
                let head = head.cloned().unwrap_or(Word {
                    text: "skip".to_owned(),
                    quoted: false,
                    span,
                });
                Some(self.section(head))
            }
            Some((TokenKind::Semicolon, _)) => {
                self.tokens.next();
                None
            }
            _ => {
                if let Some(last) = args.last().or(head) {
                    let after = shown(&last.text);
                    self.error(
                        DiagnosticKind::MissingSemicolon { after },
                        last.span.after(),
                    );
                }
                None
            }
        }
    }

    /// `{ items }`; the `{` is the next token.
    fn section(&mut self, head: Word) -> Vec<Item> {
        let opened = self.tokens.next().map_or(self.end, |token| token.span);
        self.note_hint(&head);
        let mut items = Vec::new();
        if self.open.len() >= MAX_DEPTH {
            self.error(DiagnosticKind::TooDeep { limit: MAX_DEPTH }, opened);
            // Nothing below can be understood.
            self.tokens = Vec::new().into_iter().peekable();
            self.open.clear();
            return items;
        }
        self.open.push(head);
        self.items(&mut items);
        self.open.pop();
        items
    }

    /// No section stands in one of its own kind: if it seems so, a `}` is missing before it.
    fn note_hint(&mut self, head: &Word) {
        if self.hint.is_some() || head.quoted {
            return;
        }
        let outer = self.open.iter().rev().find(|open| open.is(&head.text));
        let top = TOP_LEVEL.iter().any(|word| head.is(word));
        let outer = outer.or(if top { self.open.last() } else { None });
        self.hint = outer.map(|outer| (outer.clone(), head.span));
    }

    /// Reports the section that was not closed, once for the file.
    fn unclosed(&mut self) {
        let (section, before) = match (self.hint.take(), self.open.last()) {
            (_, None) => return,
            (Some((outer, inner)), _) => (outer, Some(self.sources.line(inner) + 1)),
            (None, Some(innermost)) => (innermost.clone(), None),
        };
        let kind = DiagnosticKind::UnclosedSection {
            section: shown(&section.text),
            before,
        };
        self.error(kind, section.span);
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Vec<Item>, Vec<DiagnosticKind>) {
        let mut sources = SourceMap::new();
        let file = sources.add("f", text.to_owned());
        let mut errors = Vec::new();
        let items = parse_text(&mut sources, file, Path::new("f"), &mut errors);
        (items, errors.into_iter().map(|error| *error.kind).collect())
    }

    fn titles(items: &[Item]) -> Vec<String> {
        let title = |item: &Item| {
            let words: Vec<&str> = std::iter::once(&item.head)
                .chain(&item.args)
                .map(|word| word.text.as_str())
                .collect();
            words.join(" ")
        };
        items.iter().map(title).collect()
    }

    #[test]
    fn statements_and_sections_nest() {
        let (items, errors) = parse("resource r0 { on a b{ disk x; } ;; protocol C; }");
        assert_eq!(errors, []);
        let body = items[0].body.as_ref().unwrap();
        assert_eq!(titles(body), ["on a b", "protocol C"]);
        assert_eq!(titles(body[0].body.as_ref().unwrap()), ["disk x"]);
    }

    #[test]
    fn skipped_things_are_gone_but_must_lex() {
        let (items, errors) =
            parse("skip resource r0 { x; } skip { y; } resource r1 { skip z; w; }");
        assert_eq!(errors, []);
        assert_eq!(titles(&items), ["resource r1"]);
        assert_eq!(titles(items[0].body.as_ref().unwrap()), ["w"]);
    }

    #[test]
    fn a_quoted_keyword_is_a_name() {
        let (items, _) = parse("\"skip\" a;");
        assert_eq!(titles(&items), ["skip a"]);
    }

    #[test]
    fn a_missing_semicolon_is_reported_once() {
        let (_, errors) = parse("net { protocol C }\nglobal { } x y");
        assert_eq!(
            errors,
            [
                DiagnosticKind::MissingSemicolon {
                    after: "C".to_owned()
                },
                DiagnosticKind::MissingSemicolon {
                    after: "y".to_owned()
                },
            ]
        );
    }

    #[test]
    fn the_section_that_lacks_its_brace_is_named() {
        let (_, errors) = parse("resource r0 {\n on a {\n disk x;\n on b {\n disk x; }\n}\n");
        let unclosed = |section: &str, before| DiagnosticKind::UnclosedSection {
            section: section.to_owned(),
            before,
        };
        assert_eq!(errors, [unclosed("on", Some(4))]);
        let (_, errors) = parse("resource r0 {\n net { }\nresource r1 { }\n");
        assert_eq!(errors, [unclosed("resource", Some(3))]);
        let (_, errors) = parse("resource r0 {\n net { \n");
        assert_eq!(errors, [unclosed("net", None)]);
    }

    #[test]
    fn stray_braces_are_reported() {
        let (items, errors) = parse("} a; { b; } c;");
        assert_eq!(
            errors,
            [
                DiagnosticKind::UnexpectedClose,
                DiagnosticKind::NamelessSection
            ]
        );
        assert_eq!(titles(&items), ["a", "c"]);
    }

    #[test]
    fn nesting_has_a_limit() {
        let (_, errors) = parse(&"a {".repeat(100_000));
        assert_eq!(errors, [DiagnosticKind::TooDeep { limit: MAX_DEPTH }]);
    }

    #[test]
    fn includes_are_relative_to_their_file_and_do_not_loop() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("main.conf");
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(
            &main,
            "include \"d/*.res\"; include \"no/*.x\"; include \"d/b.res\";",
        )
        .unwrap();
        std::fs::write(dir.path().join("d/a.res"), "resource a { }").unwrap();
        std::fs::write(
            dir.path().join("d/b.res"),
            "resource b { }\ninclude \"../main.conf\";",
        )
        .unwrap();
        let mut errors = Vec::new();
        let items = parse_file(&mut SourceMap::new(), &main, &mut errors);
        assert_eq!(titles(&items), ["resource a", "resource b", "resource b"]);
        assert_eq!(errors.len(), 2);
        assert!(matches!(
            *errors[0].kind,
            DiagnosticKind::IncludeCycle { .. }
        ));
        assert_eq!(errors[0].location.as_ref().unwrap().line, 2);
    }

    #[test]
    fn a_missing_literal_include_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("main.conf");
        std::fs::write(&main, "include \"none.res\";").unwrap();
        let mut errors = Vec::new();
        parse_file(&mut SourceMap::new(), &main, &mut errors);
        assert!(matches!(
            *errors[0].kind,
            DiagnosticKind::IncludeUnreadable { .. }
        ));
        assert!(errors[0].location.is_some());
    }
}
