//! Which sync of a node waits for which other one (`resync-after`), and that this never goes in a
//! circle.
//!
//! Both hosts of a resource follow the same order, else each could wait for the other; so what one
//! of them says counts here for both.

use std::collections::BTreeMap;
use std::fmt;

use super::diagnostic::{Diagnostic, DiagnosticKind, MAX_MESSAGES, shown};
use super::model::{Config, Resource};
use super::options::{Field, Value};
use super::source::Span;

/// The syncs that come before another one: of one volume, or of all that a resource has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct After {
    pub resource: String,
    pub volume: Option<u16>,
}

impl After {
    /// Reads `RES` or `RES/VOL`.
    pub fn parse(text: &str) -> Option<After> {
        let (resource, volume) = match text.split_once('/') {
            Some((resource, volume)) => (resource, Some(volume.parse().ok()?)),
            None => (text, None),
        };
        (!resource.is_empty()).then(|| After {
            resource: resource.to_owned(),
            volume,
        })
    }

    /// Whether it means this volume.
    pub fn means(&self, resource: &str, volume: u16) -> bool {
        self.resource == resource && self.volume.is_none_or(|only| only == volume)
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.volume {
            Some(volume) => write!(f, "{}/{volume}", self.resource),
            None => f.write_str(&self.resource),
        }
    }
}

impl Field for Option<After> {
    fn read(value: Option<&Value>) -> Option<After> {
        match value {
            Some(Value::Text(text)) => After::parse(text),
            _ => None,
        }
    }

    fn write(&self) -> Option<Value> {
        let after = self.as_ref()?;
        Some(Value::Text(after.to_string()))
    }
}

/// A volume of the cluster.
type Node<'a> = (&'a str, u16);

/// What is said about a volume, and where.
struct Rule<'a> {
    after: &'a After,
    span: Span,
}

/// Names that mean nothing, and circles. Empty = neither.
pub fn faults(config: &Config) -> Vec<Diagnostic> {
    let rules = rules(config);
    let mut errors = Vec::new();
    for rule in rules.values().flatten() {
        let kind = unknown(config, rule.after);
        let Some((kind, suggestion)) = kind else {
            continue;
        };
        let error = Diagnostic::new(kind).at(config.sources.locate(rule.span));
        let error = error.suggest(&rule.after.resource, suggestion.into_iter().flatten());
        // What all hosts and volumes inherit is one mistake.
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    if errors.is_empty() {
        errors.extend(circle(config, &rules));
    }
    errors.truncate(MAX_MESSAGES);
    errors
}

fn rules(config: &Config) -> BTreeMap<Node<'_>, Vec<Rule<'_>>> {
    let mut rules: BTreeMap<Node<'_>, Vec<Rule<'_>>> = BTreeMap::new();
    for resource in &config.resources {
        for volume in resource.hosts.iter().flat_map(|host| &host.volumes) {
            if let (Some(after), Some(span)) = (&volume.options.resync_after, volume.after_at) {
                let of = rules.entry((&resource.name, volume.number)).or_default();
                of.push(Rule { after, span });
            }
        }
    }
    rules
}

/// Why a rule means no volume, and the names that may have been meant.
fn unknown<'a>(
    config: &'a Config,
    after: &After,
) -> Option<(DiagnosticKind, Option<Vec<&'a str>>)> {
    let named = |resource: &&Resource| resource.name.value == after.resource;
    let Some(resource) = config.resources.iter().find(named) else {
        let names = config.resources.iter().map(|r| r.name.as_str());
        let kind = DiagnosticKind::AfterUnknown {
            after: shown(&after.to_string()),
            what: format!("there is no resource {}", shown(&after.resource)),
        };
        return Some((kind, Some(names.collect())));
    };
    let has = |number: u16| { resource.hosts.iter() }.any(|host| host.has_volume(number));
    after.volume.filter(|number| !has(*number)).map(|number| {
        let kind = DiagnosticKind::AfterUnknown {
            after: shown(&after.to_string()),
            what: format!("{} has no volume {number}", resource.name.value),
        };
        (kind, None)
    })
}

/// The first circle, at the place of one of its rules.
fn circle(config: &Config, rules: &BTreeMap<Node<'_>, Vec<Rule<'_>>>) -> Option<Diagnostic> {
    let mut done = Vec::new();
    for start in rules.keys() {
        let mut path = Vec::new();
        if let Some((names, span)) = follow(rules, *start, &mut path, &mut done) {
            let kind = DiagnosticKind::AfterCircle { names };
            return Some(Diagnostic::new(kind).at(config.sources.locate(span)));
        }
    }
    None
}

/// Goes on from `node`, which is not `done`; what is on the `path` must not come again.
fn follow<'a>(
    rules: &BTreeMap<Node<'a>, Vec<Rule<'a>>>,
    node: Node<'a>,
    path: &mut Vec<Node<'a>>,
    done: &mut Vec<Node<'a>>,
) -> Option<(String, Span)> {
    if done.contains(&node) {
        return None;
    }
    path.push(node);
    for rule in rules.get(&node).into_iter().flatten() {
        // Only what has a rule of its own can lead back.
        let next = rules
            .keys()
            .filter(|(name, volume)| rule.after.means(name, *volume));
        for next in next {
            if let Some(from) = path.iter().position(|seen| seen == next) {
                let ring = path[from..].iter().chain([next]);
                let names: Vec<String> = ring
                    .map(|(name, volume)| format!("{name}/{volume}"))
                    .collect();
                return Some((names.join(" after "), rule.span));
            }
            if let Some(found) = follow(rules, *next, path, done) {
                return Some(found);
            }
        }
    }
    path.pop();
    done.push(node);
    None
}
