//! Files of DRBD: our own grammar, but an option that we do not carry out is told, not refused.

use std::path::PathBuf;

use super::super::diagnostic::{Diagnostic, DiagnosticKind, MAX_MESSAGES, shown};
use super::super::model::Config;
use super::super::schema::{self, Section, Support};
use super::super::source::SourceMap;
use super::super::syntax::Item;
use super::super::{parser, read, resolve};

/// The files as one configuration; empty without files.
pub fn read(files: &[PathBuf], notes: &mut Vec<String>, errors: &mut Vec<Diagnostic>) -> Config {
    let mut sources = SourceMap::new();
    let mut items = Vec::new();
    let mut faults = Vec::new();
    for file in files {
        items.extend(parser::parse_file(&mut sources, file, &mut faults));
    }
    without_effect(&sources, &items, None, notes);
    // Each round leaves out at least one statement.
    loop {
        if !faults.is_empty() {
            faults.truncate(MAX_MESSAGES);
            errors.append(&mut faults);
            return empty();
        }
        let mut found = Vec::new();
        let draft = read::read(&sources, &items, &mut found);
        let config = resolve::resolve(sources.clone(), draft, &mut found);
        let before = found.len();
        found.retain(|fault| !leave_out(&sources, &mut items, fault, notes));
        if before == 0 {
            return config;
        }
        if found.len() == before {
            faults = found;
        }
    }
}

/// Tells of the options that have no meaning here.
fn without_effect(
    sources: &SourceMap,
    items: &[Item],
    section: Option<Section>,
    notes: &mut Vec<String>,
) {
    for item in items {
        let found = section.and_then(|section| schema::find(section, &item.head.text));
        if let Some(Support::NoEffect(reason)) = found.map(|found| found.spec.support) {
            let at = sources.locate(item.head.span);
            let name = shown(&item.head.text);
            notes.push(format!(
                "{}:{}: `{name}`: left out: {reason}",
                at.file, at.line
            ));
        }
        let section = match item.head.text.as_str() {
            "global" => Some(Section::Global),
            "net" => Some(Section::Net),
            "disk" => Some(Section::Disk),
            "options" => Some(Section::Options),
            "startup" => Some(Section::Startup),
            "syncer" => Some(Section::Syncer),
            _ => None,
        };
        without_effect(
            sources,
            item.body.as_deref().unwrap_or_default(),
            section,
            notes,
        );
    }
}

/// A configuration that says nothing.
pub fn empty() -> Config {
    Config {
        global: Default::default(),
        cluster: Default::default(),
        resources: Vec::new(),
        warnings: Vec::new(),
        arbiter_written: false,
        sources: SourceMap::new(),
    }
}

/// Takes the statement out that this message is about, if all that is wrong is that we do not
/// carry it out.
fn leave_out(
    sources: &SourceMap,
    items: &mut Vec<Item>,
    fault: &Diagnostic,
    notes: &mut Vec<String>,
) -> bool {
    let known = matches!(
        *fault.kind,
        DiagnosticKind::NotSupported { .. } | DiagnosticKind::ValueNotSupported { .. }
    );
    let Some(place) = fault.location.as_deref().filter(|_| known) else {
        return false;
    };
    let mut gone = false;
    remove(items, &mut |item| {
        let at = sources.locate(item.head.span);
        // What a resource is made of cannot be left out.
        let option = item.body.is_none() && !STRUCTURE.contains(&item.head.text.as_str());
        let hit =
            option && (&at.file, at.line, at.column) == (&place.file, place.line, place.column);
        gone |= hit;
        hit
    });
    if gone {
        let help = if handler(&fault.kind) {
            "; events go to `notify` in `cluster`, fencing to `--vote`"
        } else {
            ""
        };
        notes.push(format!(
            "{}:{}: {}: left out{help}",
            place.file, place.line, fault.kind
        ));
    }
    gone
}

/// Statements that make a resource.
const STRUCTURE: [&str; 4] = ["address", "device", "disk", "meta-disk"];

fn handler(kind: &DiagnosticKind) -> bool {
    match kind {
        DiagnosticKind::NotSupported { what } => [
            "fence-peer",
            "outdate-peer",
            "unfence-peer",
            "split-brain",
            "initial-split-brain",
            "local-io-error",
        ]
        .contains(&what.as_str()),
        _ => false,
    }
}

fn remove(items: &mut Vec<Item>, hit: &mut dyn FnMut(&Item) -> bool) {
    items.retain(|item| !hit(item));
    for item in items {
        if let Some(body) = &mut item.body {
            remove(body, hit);
        }
    }
}
