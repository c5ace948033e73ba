//! The `cluster` section, made from its draft.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::cluster::{Cluster, ClusterNode, Heartbeat, TimerFault, Watchdog};
use super::super::diagnostic::{Diagnostic, DiagnosticKind};
use super::super::options::Settings;
use super::super::read::{DraftCluster, DraftNode, DraftWatchdog};
use super::super::source::{SourceMap, Span};

/// Makes the cluster. Errors are appended to `errors`.
pub fn resolve(sources: &SourceMap, draft: DraftCluster, errors: &mut Vec<Diagnostic>) -> Cluster {
    let mut fail = |kind, span| errors.push(Diagnostic::new(kind).at(sources.locate(span)));
    let timeout = draft
        .watchdog
        .as_ref()
        .and_then(|watchdog| watchdog.timeout.as_ref());
    let heartbeat = Heartbeat::settle(&draft.heartbeat, timeout.map(|time| time.value));
    let mut watchdog = None;
    match heartbeat.fault() {
        Some(fault) => {
            let span = place(&fault, &draft.heartbeat, draft.watchdog.as_ref());
            fail(DiagnosticKind::Timers(fault), span);
        }
        None => {
            if let Some(draft_dog) = draft.watchdog {
                let written = draft_dog.timeout.as_ref().map(|time| time.value);
                match heartbeat.watchdog(written) {
                    Ok(timeout) => watchdog = Some(armed(draft_dog, timeout)),
                    Err(fault) => {
                        let span = place(&fault, &draft.heartbeat, Some(&draft_dog));
                        fail(DiagnosticKind::Timers(fault), span);
                    }
                }
            }
        }
    }
    let mut nodes = BTreeMap::new();
    for (name, node) in draft.nodes {
        match member(node) {
            Ok(node) => {
                nodes.insert(name, node);
            }
            // What was refused in a faulty section may be the id.
            Err(_) if draft.faulty => {}
            Err(span) => fail(DiagnosticKind::NodeWithoutId { name }, span),
        }
    }
    Cluster {
        key_file: draft.key_file.map(|path| path.value),
        heartbeat,
        nodes,
        arbiter: draft
            .arbiter
            .map(|arbiter| arbiter.value)
            .unwrap_or_default(),
        watchdog,
        notify: draft.notify,
    }
}

fn armed(draft: DraftWatchdog, timeout: Duration) -> Watchdog {
    Watchdog {
        device: draft.device,
        timeout,
    }
}

/// A node, or the place of one without its id.
fn member(node: DraftNode) -> Result<ClusterNode, Span> {
    match node.node_id {
        Some(node_id) => Ok(ClusterNode {
            name: node.name,
            node_id,
            paths: node.paths,
        }),
        None => Err(node.name.span),
    }
}

/// Where a rule is broken: at the first of its options that is written.
fn place(fault: &TimerFault, settings: &Settings, watchdog: Option<&DraftWatchdog>) -> Span {
    let span = |name: &str| match watchdog {
        Some(watchdog) if name == "watchdog" => Some(
            watchdog
                .timeout
                .as_ref()
                .map_or(watchdog.device.span, |time| time.span),
        ),
        _ => settings.get(name).map(|setting| setting.span),
    };
    fault
        .options()
        .into_iter()
        .find_map(span)
        .or_else(|| settings.values().next().map(|setting| setting.span))
        .unwrap_or_default()
}
