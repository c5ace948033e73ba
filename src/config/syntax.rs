//! The syntax tree: statements and sections as written, with their places. DRBD's grammar is
//! regular enough that one shape serves all: words, then `;` or `{ ... }`.

use super::source::Span;

/// A word or a quoted string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Escapes resolved.
    pub text: String,
    /// A quoted string is never a keyword.
    pub quoted: bool,
    pub span: Span,
}

impl Word {
    /// True for the bare word `keyword`.
    pub fn is(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }
}

/// A statement `head args;` or a section `head args { body }`. What is marked `skip` is not in the
/// tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub head: Word,
    pub args: Vec<Word>,
    /// `None` for a statement.
    pub body: Option<Vec<Item>>,
}

impl Item {
    /// From the first word to the last.
    pub fn span(&self) -> Span {
        match self.args.last() {
            Some(last) => self.head.span.to(last.span),
            None => self.head.span,
        }
    }
}
