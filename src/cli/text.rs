//! What the command line prints. A closed pipe ends output quietly: `status | head` is no error,
//! and what would go on printing ends.

use std::io::{Write, stderr, stdout};

use serde_json::{Value, json};

use crate::agent::protocol::ErrorReply;

/// Prints `text` on standard output as it is. False when nobody reads it any more, which is no
/// error but a reason to stop.
pub fn out(text: &str) -> bool {
    let mut stream = stdout().lock();
    let written = stream.write_all(text.as_bytes());
    written.and_then(|()| stream.flush()).is_ok()
}

/// Prints a line on standard output; as [`out`].
pub fn line(text: &str) -> bool {
    out(&format!("{text}\n"))
}

/// Prints `value` indented; as [`out`].
pub fn pretty(value: &Value) -> bool {
    line(&format!("{value:#}"))
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
