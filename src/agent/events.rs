//! Lines of `lockstep events`: what changed between two pictures of a resource, in the manner of
//! `drbdsetup events2`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::protocol::{Finished, Run};
use super::view::{ConnectionView, DeviceView, PeerDeviceView, ResourceView};

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// Part of the picture at the beginning of the stream.
    Exists,
    Create,
    Change,
    Destroy,
}

impl EventKind {
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Exists => "exists",
            EventKind::Create => "create",
            EventKind::Change => "change",
            EventKind::Destroy => "destroy",
        }
    }
}

/// A key and its value. Pairs keep the order in which they are printed.
type Pair = (String, Value);

/// One line of the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub event: EventKind,
    /// `resource`, `connection`, `device`, `peer-device`, or `-` at the end of the first picture.
    pub object: String,
    /// What the object is.
    pub id: Vec<Pair>,
    /// How it is; only what changed in a `change`.
    pub state: Vec<Pair>,
}

impl Event {
    /// Ends the first picture.
    pub fn end_of_picture() -> Event {
        Event {
            event: EventKind::Exists,
            object: "-".to_owned(),
            id: Vec::new(),
            state: Vec::new(),
        }
    }

    /// The line in `events2` form.
    pub fn text(&self) -> String {
        let mut line = format!("{} {}", self.event.name(), self.object);
        for (key, value) in self.id.iter().chain(&self.state) {
            let value = match value {
                Value::String(text) => text.replace(char::is_whitespace, "_"),
                Value::Bool(true) => "yes".to_owned(),
                Value::Bool(false) => "no".to_owned(),
                other => other.to_string(),
            };
            line.push_str(&format!(" {key}:{value}"));
        }
        line
    }

    /// The line as one flat object.
    pub fn json(&self) -> Value {
        let mut map = Map::new();
        map.insert("event".to_owned(), json!(self.event.name()));
        map.insert("object".to_owned(), json!(self.object));
        map.extend(self.id.iter().chain(&self.state).cloned());
        Value::Object(map)
    }
}

/// An object of a picture.
#[derive(Clone, Debug, PartialEq)]
struct Object {
    kind: &'static str,
    id: Vec<Pair>,
    state: Vec<Pair>,
}

impl Object {
    fn event(&self, event: EventKind, state: Vec<Pair>) -> Event {
        Event {
            event,
            object: self.kind.to_owned(),
            id: self.id.clone(),
            state,
        }
    }
}

fn pair(key: &str, value: impl Into<Value>) -> Pair {
    (key.to_owned(), value.into())
}

/// Adds a reason, empty when there is none, so that its end is a change too.
fn with_reason(mut state: Vec<Pair>, reason: Option<&str>) -> Vec<Pair> {
    state.push(pair("reason", reason.unwrap_or("none")));
    state
}

/// The objects of a picture, owners before what they own.
fn objects(view: &ResourceView) -> Vec<Object> {
    let resource = Object {
        kind: "resource",
        id: vec![pair("name", view.name.as_str())],
        state: with_reason(
            vec![
                pair("role", view.role.as_str()),
                pair("suspended", view.suspended),
            ],
            view.reason.as_deref(),
        ),
    };
    let mut all = vec![resource];
    all.extend(view.connections.iter().map(|c| connection(view, c)));
    all.extend(view.devices.iter().map(|d| device(view, d)));
    for link in &view.connections {
        let peers = link.peer_devices.iter();
        all.extend(peers.map(|peer| peer_device(view, link, peer)));
    }
    all
}

fn connection(view: &ResourceView, link: &ConnectionView) -> Object {
    Object {
        kind: "connection",
        id: connection_id(view, link),
        state: with_reason(
            vec![
                pair("connection", link.connection_state.as_str()),
                pair("role", link.peer_role.as_str()),
            ],
            link.reason.as_deref(),
        ),
    }
}

fn connection_id(view: &ResourceView, link: &ConnectionView) -> Vec<Pair> {
    vec![
        pair("name", view.name.as_str()),
        pair("peer-node-id", link.peer_node_id),
        pair("conn-name", link.name.as_str()),
    ]
}

fn device(view: &ResourceView, device: &DeviceView) -> Object {
    Object {
        kind: "device",
        id: vec![
            pair("name", view.name.as_str()),
            pair("volume", device.volume),
            pair("minor", device.minor),
        ],
        state: with_reason(
            vec![
                pair("disk", device.disk_state.as_str()),
                pair("size", device.size),
            ],
            device.reason.as_deref(),
        ),
    }
}

fn peer_device(view: &ResourceView, link: &ConnectionView, peer: &PeerDeviceView) -> Object {
    let mut id = connection_id(view, link);
    id.push(pair("volume", peer.volume));
    Object {
        kind: "peer-device",
        id,
        state: with_reason(
            vec![
                pair("replication", peer.replication_state.as_str()),
                pair("peer-disk", peer.peer_disk_state.as_str()),
                pair("resync-suspended", peer.resync_suspended.as_str()),
            ],
            peer.reason.as_deref(),
        ),
    }
}

/// The first picture of a resource.
pub fn picture(view: &ResourceView) -> Vec<Event> {
    objects(view)
        .into_iter()
        .map(|object| object.event(EventKind::Exists, object.state.clone()))
        .collect()
}

/// What changed from `old` to `new`; no `old` = the resource is new, no `new` = it is gone.
pub fn changes(old: Option<&ResourceView>, new: Option<&ResourceView>) -> Vec<Event> {
    let before = old.map(objects).unwrap_or_default();
    let after = new.map(objects).unwrap_or_default();
    let same = |a: &Object, b: &Object| a.kind == b.kind && a.id == b.id;
    let mut events = Vec::new();
    // Owned objects go before their owners.
    for object in before.iter().rev() {
        if !after.iter().any(|other| same(object, other)) {
            events.push(object.event(EventKind::Destroy, Vec::new()));
        }
    }
    for object in &after {
        let Some(earlier) = before.iter().find(|other| same(object, other)) else {
            events.push(object.event(EventKind::Create, object.state.clone()));
            continue;
        };
        let changed: Vec<Pair> = object
            .state
            .iter()
            .filter(|pair| !earlier.state.contains(pair))
            .cloned()
            .collect();
        if !changed.is_empty() {
            events.push(object.event(EventKind::Change, changed));
        }
    }
    events
}

/// The line that a finished sync, verify or repair leaves: its totals are no state, so that no
/// picture shows them. None for a volume that is not there.
pub fn finished(view: &ResourceView, of: &Finished) -> Option<Event> {
    let mut peers = { view.connections.iter() }
        .flat_map(|link| link.peer_devices.iter().map(move |peer| (link, peer)));
    let (link, peer) = peers.find(|(_, peer)| peer.volume == of.volume)?;
    let mut state = match of.run {
        Run::Resync { copied, equal } => vec![
            pair("resync", "done"),
            pair("copied-kib", copied),
            pair("equal-kib", equal),
        ],
        Run::Verify {
            complete,
            compared,
            found,
            skipped,
        } => vec![
            pair("verify", if complete { "done" } else { "stopped" }),
            pair("compared-kib", compared),
            pair("found-kib", found),
            pair("skipped-kib", skipped),
        ],
        Run::Repair { repaired } => vec![pair("repair", "done"), pair("repaired-kib", repaired)],
    };
    state.push(pair("seconds", of.seconds));
    state.push(pair("rate-kib-s", of.rate_kib_s));
    Some(peer_device(view, link, peer).event(EventKind::Change, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> ResourceView {
        ResourceView {
            name: "r0".to_owned(),
            role: "Secondary".to_owned(),
            devices: vec![DeviceView {
                disk_state: "UpToDate".to_owned(),
                ..DeviceView::default()
            }],
            connections: vec![ConnectionView {
                peer_node_id: 1,
                name: "beta".to_owned(),
                connection_state: "Connecting".to_owned(),
                peer_role: "Unknown".to_owned(),
                peer_devices: vec![PeerDeviceView {
                    replication_state: "Off".to_owned(),
                    peer_disk_state: "DUnknown".to_owned(),
                    resync_suspended: "no".to_owned(),
                    ..PeerDeviceView::default()
                }],
                ..ConnectionView::default()
            }],
            ..ResourceView::default()
        }
    }

    fn lines(events: &[Event]) -> Vec<String> {
        events.iter().map(Event::text).collect()
    }

    #[test]
    fn the_first_picture_names_every_object() {
        let expected = [
            "exists resource name:r0 role:Secondary suspended:no reason:none",
            "exists connection name:r0 peer-node-id:1 conn-name:beta connection:Connecting \
             role:Unknown reason:none",
            "exists device name:r0 volume:0 minor:0 disk:UpToDate size:0 reason:none",
            "exists peer-device name:r0 peer-node-id:1 conn-name:beta volume:0 replication:Off \
             peer-disk:DUnknown resync-suspended:no reason:none",
        ];
        assert_eq!(lines(&picture(&view())), expected);
        assert_eq!(Event::end_of_picture().text(), "exists -");
    }

    #[test]
    fn only_what_changed_is_said() {
        let old = view();
        let mut new = view();
        new.role = "Primary".to_owned();
        new.connections[0].reason = Some("the peer is gone".to_owned());
        assert_eq!(
            lines(&changes(Some(&old), Some(&new))),
            [
                "change resource name:r0 role:Primary",
                "change connection name:r0 peer-node-id:1 conn-name:beta reason:the_peer_is_gone",
            ]
        );
        assert!(changes(Some(&old), Some(&old)).is_empty());
    }

    #[test]
    fn a_resource_comes_and_goes_in_order() {
        let view = view();
        let came = changes(None, Some(&view));
        assert!(came.iter().all(|event| event.event == EventKind::Create));
        assert_eq!(came[0].object, "resource");
        let gone = lines(&changes(Some(&view), None));
        assert_eq!(gone.len(), 4);
        assert_eq!(gone[3], "destroy resource name:r0");
    }

    #[test]
    fn what_has_ended_leaves_its_totals() {
        let mut of = Finished {
            volume: 0,
            run: Run::Resync {
                copied: 2048,
                equal: 4,
            },
            seconds: 2.5,
            rate_kib_s: 820,
        };
        let line = |of: &Finished| finished(&view(), of).map(|event| event.text());
        let expected = |what: &str| {
            let id = "change peer-device name:r0 peer-node-id:1 conn-name:beta volume:0";
            Some(format!("{id} {what} seconds:2.5 rate-kib-s:820"))
        };
        assert_eq!(
            line(&of),
            expected("resync:done copied-kib:2048 equal-kib:4")
        );
        of.run = Run::Verify {
            complete: false,
            compared: 9,
            found: 4,
            skipped: 0,
        };
        let verify = "verify:stopped compared-kib:9 found-kib:4 skipped-kib:0";
        assert_eq!(line(&of), expected(verify));
        of.run = Run::Repair { repaired: 4 };
        assert_eq!(line(&of), expected("repair:done repaired-kib:4"));
        of.volume = 7;
        assert_eq!(line(&of), None);
    }

    #[test]
    fn json_is_flat() {
        let events = picture(&view());
        assert_eq!(events[0].json()["role"], "Secondary");
        assert_eq!(events[0].json()["event"], "exists");
    }
}
