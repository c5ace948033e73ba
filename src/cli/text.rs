//! What the command line prints. A closed pipe ends output quietly: `status | head` is no error.

use std::io::{Write, stderr, stdout};

use serde_json::{Value, json};

use crate::agent::protocol::ErrorReply;

/// Prints `text` on standard output as it is.
pub fn out(text: &str) {
    // Nothing sensible can be done about a reader that went away.
    let mut stream = stdout().lock();
    let _ = stream.write_all(text.as_bytes());
    let _ = stream.flush();
}

/// Prints a line on standard output.
pub fn line(text: &str) {
    out(&format!("{text}\n"));
}

/// Prints `value` indented.
pub fn pretty(value: &Value) {
    line(&format!("{value:#}"));
}

/// Prints an error on standard error.
pub fn report(error: &ErrorReply, json: bool) {
    let mut stream = stderr().lock();
    let text = if json {
        let body = json!({"kind": error.kind, "reason": error.reason, "help": error.help});
        json!({ "error": body }).to_string()
    } else {
        format!("error: {}\nhelp: {}", error.reason, error.help)
    };
    let _ = writeln!(stream, "{text}");
}
