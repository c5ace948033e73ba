//! Text to tokens: bare words, quoted strings, `{`, `}`, `;`. `#` begins a comment.

use super::diagnostic::DiagnosticKind;
use super::source::Span;

/// A token with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: TokenKind,
    pub span: Span,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A bare word: anything but blanks, quotes, braces, `;` and `#`.
    Word(String),
    /// A string in double quotes, escapes already resolved. Never a keyword.
    Quoted(String),
    Open,
    Close,
    Semicolon,
}

/// A lexical error with its place.
pub type LexError = (DiagnosticKind, Span);

/// All tokens of a text. Errors are collected; lexing goes on after each.
pub fn lex(file: u32, text: &str) -> (Vec<Token>, Vec<LexError>) {
    let mut lexer = Lexer {
        file,
        text,
        at: 0,
        tokens: Vec::new(),
        errors: Vec::new(),
    };
    while let Some(c) = lexer.peek() {
        lexer.step(c);
    }
    (lexer.tokens, lexer.errors)
}

struct Lexer<'a> {
    file: u32,
    text: &'a str,
    /// Byte offset, always on a character boundary.
    at: usize,
    tokens: Vec<Token>,
    errors: Vec<LexError>,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.text
            .get(self.at..)
            .and_then(|rest| rest.chars().next())
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn step(&mut self, c: char) {
        let start = self.at;
        match c {
            '#' => self.skip_while(|c| c != '\n'),
            '"' => self.string(start),
            '{' => self.single(TokenKind::Open),
            '}' => self.single(TokenKind::Close),
            ';' => self.single(TokenKind::Semicolon),
            c if c.is_whitespace() => self.skip_while(char::is_whitespace),
            c if is_word(c) => {
                self.skip_while(is_word);
                let word = self.text.get(start..self.at).unwrap_or("").to_owned();
                self.push(start, TokenKind::Word(word));
            }
            c => {
                self.bump();
                let span = Span::new(self.file, start, self.at);
                self.errors.push((DiagnosticKind::BadCharacter(c), span));
            }
        }
    }

    fn skip_while(&mut self, keep: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&keep) {
            self.bump();
        }
    }

    fn single(&mut self, kind: TokenKind) {
        let start = self.at;
        self.bump();
        self.push(start, kind);
    }

    fn push(&mut self, start: usize, kind: TokenKind) {
        let span = Span::new(self.file, start, self.at);
        self.tokens.push(Token { kind, span });
    }

    /// A string ends on its line, so that a forgotten quote is reported where it stands.
    fn string(&mut self, start: usize) {
        self.bump();
        let mut value = String::new();
        loop {
            match self.peek() {
                None | Some('\n') => {
                    let span = Span::new(self.file, start, self.at);
                    self.errors.push((DiagnosticKind::UnterminatedString, span));
                    // What was read stands as the word, so that nothing else is reported for it.
                    return self.push(start, TokenKind::Quoted(value));
                }
                Some('"') => {
                    self.bump();
                    return self.push(start, TokenKind::Quoted(value));
                }
                Some('\\') => {
                    self.bump();
                    match self.peek() {
                        // The end is reported by the next round.
                        None | Some('\n') => {}
                        Some(c) => {
                            self.bump();
                            value.push(unescape(c));
                        }
                    }
                }
                Some(c) => {
                    self.bump();
                    value.push(c);
                }
            }
        }
    }
}

fn is_word(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !matches!(c, '{' | '}' | ';' | '#' | '"')
}

fn unescape(c: char) -> char {
    match c {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        other => other,
    }
}

/// A value as it must be written: bare if it can be, else in quotes with escapes. The reverse of
/// what [`lex`] does.
pub fn quote(value: &str) -> String {
    if !value.is_empty() && value.chars().all(is_word) {
        return value.to_owned();
    }
    quote_always(value)
}

/// A value in quotes, with escapes.
pub fn quote_always(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<TokenKind> {
        let (tokens, errors) = lex(0, text);
        assert_eq!(errors, []);
        tokens.into_iter().map(|token| token.kind).collect()
    }

    fn word(text: &str) -> TokenKind {
        TokenKind::Word(text.to_owned())
    }

    #[test]
    fn words_end_at_blanks_braces_semicolons_and_comments() {
        use TokenKind::{Close, Open, Semicolon};
        assert_eq!(
            words("on a{disk /dev/vg0/r0;# note } ;\n}"),
            [
                word("on"),
                word("a"),
                Open,
                word("disk"),
                word("/dev/vg0/r0"),
                Semicolon,
                Close
            ]
        );
        assert_eq!(
            words("nbd+unix:///r0?socket=/run/x [::1]:7 /dev/sdb2[0]"),
            [
                word("nbd+unix:///r0?socket=/run/x"),
                word("[::1]:7"),
                word("/dev/sdb2[0]")
            ]
        );
    }

    #[test]
    fn strings_keep_what_words_cannot() {
        assert_eq!(
            words(r#""a # b; {c}" "q\"\\\n\x""#),
            [
                TokenKind::Quoted("a # b; {c}".to_owned()),
                TokenKind::Quoted("q\"\\\nx".to_owned())
            ]
        );
    }

    #[test]
    fn a_string_without_end_is_reported_on_its_line_and_lexing_goes_on() {
        let (tokens, errors) = lex(0, "a \"bc\n d;");
        assert_eq!(
            errors,
            [(DiagnosticKind::UnterminatedString, Span::new(0, 2, 5))]
        );
        assert_eq!(tokens.len(), 4);
        let (_, errors) = lex(0, "\"x\\");
        assert_eq!(errors.len(), 1);
    }

    #[test]
    fn control_characters_are_refused() {
        let (_, errors) = lex(0, "a\u{1}b");
        assert_eq!(
            errors,
            [(DiagnosticKind::BadCharacter('\u{1}'), Span::new(0, 1, 2))]
        );
    }

    #[test]
    fn quote_is_the_reverse_of_lex() {
        for value in ["", "a b", "plain", "q\"u\\o", "tab\tnl\ncr\r", "#", "a;{}"] {
            let (tokens, errors) = lex(0, &quote(value));
            assert_eq!(errors, []);
            assert_eq!(tokens.len(), 1);
            match &tokens[0].kind {
                TokenKind::Word(text) | TokenKind::Quoted(text) => assert_eq!(text, value),
                other => panic!("{other:?}"),
            }
        }
    }
}
