//! `verify-schedule`: when the agent has the copies of a resource compared by itself.
//!
//! One node of the pair begins: the primary, else the one with the lower id. The other one counts
//! the time as kept when it sees that its peer is the one. What cannot begin at its time, because
//! there is no connection or a sync runs, is tried for [`LATE`]; after that, and after a night in
//! which the node was down, the next time counts.

use std::rc::Rc;
use std::time::Duration;

use jiff::civil::Time;
use jiff::{SignedDuration, Span, Timestamp, Zoned};
use tokio::time::sleep;
use tracing::{info, warn};

use super::node::Node;
use super::status::Status;
use super::view::ResourceView;
use crate::config::Schedule;

/// The time of day.
pub type Clock = Rc<dyn Fn() -> Zoned>;

/// How late a verify may begin.
const LATE: SignedDuration = SignedDuration::from_hours(1);
/// Between two looks at the clock.
const LOOK: Duration = Duration::from_secs(1);

/// The clock of the machine, in its time zone.
pub fn wall() -> Clock {
    Rc::new(Zoned::now)
}

/// When it is on the day of `day`; none on other days of the week.
fn on(schedule: &Schedule, day: &Zoned) -> Option<Zoned> {
    let weekday = day.weekday().to_monday_zero_offset() as usize;
    if !schedule.is_on(weekday) {
        return None;
    }
    let time = Time::new(schedule.hour as i8, schedule.minute as i8, 0, 0).ok()?;
    // A time that the clocks pass over is the one after the gap, one that comes twice the first.
    day.date()
        .to_datetime(time)
        .to_zoned(day.time_zone().clone())
        .ok()
}

fn days(from: &Zoned, step: i64) -> impl Iterator<Item = Zoned> + '_ {
    (0..=7).filter_map(move |n| from.checked_add(Span::new().days(n * step)).ok())
}

/// The last time up to now.
fn last(schedule: &Schedule, now: &Zoned) -> Option<Zoned> {
    { days(now, -1).filter_map(|day| on(schedule, &day)) }.find(|at| at <= now)
}

/// The first time after now.
pub fn next(schedule: &Schedule, now: &Zoned) -> Option<Zoned> {
    { days(now, 1).filter_map(|day| on(schedule, &day)) }.find(|at| at > now)
}

/// What the clock says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// It is the turn of this time.
    Now(Timestamp),
    /// That time has passed.
    Missed(Timestamp),
}

/// Whether there is a time since `kept`, the last one that was seen to.
fn due(schedule: &Schedule, now: &Zoned, kept: Timestamp) -> Due {
    let Some(at) = last(schedule, now).filter(|at| at.timestamp() > kept) else {
        return Due::Nothing;
    };
    match at.checked_add(LATE) {
        Ok(end) if *now <= end => Due::Now(at.timestamp()),
        _ => Due::Missed(at.timestamp()),
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Ours,
    /// The peer's; or a verify runs already.
    Others,
    /// The copies do not follow each other.
    Nobodys,
}

fn turn(view: &ResourceView) -> Turn {
    let mut peers = view.connections.iter().flat_map(|link| &link.peer_devices);
    if !view.in_sync() {
        return Turn::Nobodys;
    }
    if peers.any(|peer| peer.replication_state.starts_with("Verify")) {
        return Turn::Others;
    }
    let peer_reigns = view
        .connections
        .iter()
        .any(|link| link.peer_role == "Primary");
    let lowest = view
        .connections
        .iter()
        .all(|link| view.node_id < link.peer_node_id);
    match view.role.as_str() {
        "Primary" => Turn::Ours,
        _ if peer_reigns || !lowest => Turn::Others,
        _ => Turn::Ours,
    }
}

/// Begins every verify at its time, for as long as the agent lives.
pub async fn follow(node: Rc<Node>) {
    let begun = (node.clock())().timestamp();
    loop {
        for status in node.statuses() {
            look(&node, &status, begun).await;
        }
        sleep(LOOK).await;
    }
}

async fn look(node: &Node, status: &Status, begun: Timestamp) {
    let Some(schedule) = status.plan().upkeep.schedule else {
        return;
    };
    let now = (node.clock())();
    let kept = status.kept();
    // A schedule that is new does not ask for what lies before it.
    let Some(last) = kept.scheduled() else {
        return kept.set_scheduled(now.timestamp());
    };
    let resource = status.plan().name().to_owned();
    match due(&schedule, &now, last) {
        Due::Nothing => {}
        Due::Missed(at) => {
            kept.set_scheduled(at);
            if at >= begun {
                warn!(resource, %at, "the verify of this time was not begun: no connection, or a sync");
            }
        }
        Due::Now(at) => match status.told().as_ref().map(turn) {
            None | Some(Turn::Nobodys) => {}
            Some(Turn::Others) => kept.set_scheduled(at),
            Some(Turn::Ours) => {
                kept.set_scheduled(at);
                match node.verify(&resource).await {
                    Ok(_) => info!(resource, %schedule, "verify begun by schedule"),
                    Err(error) => warn!(resource, reason = error.reason, "scheduled verify"),
                }
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::view::{ConnectionView, DeviceView, PeerDeviceView};

    fn schedule(text: &str) -> Schedule {
        Schedule::parse(text).expect(text)
    }

    /// Berlin, whose clocks go forward and back at 02:00 and 03:00.
    fn at(text: &str) -> Zoned {
        let zone = jiff::tz::TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone");
        let time: jiff::civil::DateTime = text.parse().expect(text);
        time.to_zoned(zone).expect("a time")
    }

    fn text(time: Option<Zoned>) -> String {
        time.map_or(String::new(), |time| {
            time.strftime("%a %F %H:%M %:z").to_string()
        })
    }

    #[test]
    fn times_are_those_of_the_local_clock() {
        // A Wednesday.
        let now = at("2026-11-25 12:00");
        for (times, before, after) in [
            (
                "Sun 03:00",
                "Sun 2026-11-22 03:00 +01:00",
                "Sun 2026-11-29 03:00 +01:00",
            ),
            (
                "daily 12:00",
                "Wed 2026-11-25 12:00 +01:00",
                "Thu 2026-11-26 12:00 +01:00",
            ),
            (
                "Wed 12:01",
                "Wed 2026-11-18 12:01 +01:00",
                "Wed 2026-11-25 12:01 +01:00",
            ),
            (
                "Wed 11:59",
                "Wed 2026-11-25 11:59 +01:00",
                "Wed 2026-12-02 11:59 +01:00",
            ),
            (
                "Mon,Wed 04:30",
                "Wed 2026-11-25 04:30 +01:00",
                "Mon 2026-11-30 04:30 +01:00",
            ),
        ] {
            let times = schedule(times);
            assert_eq!(text(last(&times, &now)), before, "{times}");
            assert_eq!(text(next(&times, &now)), after, "{times}");
        }
    }

    #[test]
    fn no_time_is_lost_or_doubled_when_the_clocks_change() {
        let early = schedule("Sun 02:30");
        let spring = at("2026-03-28 12:00");
        assert_eq!(text(next(&early, &spring)), "Sun 2026-03-29 03:30 +02:00");
        let autumn = at("2026-10-24 12:00");
        let first = next(&early, &autumn).expect("there is one");
        assert_eq!(text(Some(first.clone())), "Sun 2026-10-25 02:30 +02:00");
        assert_eq!(text(next(&early, &first)), "Sun 2026-11-01 02:30 +01:00");
        // An hour later the clock shows the same time again.
        let again = first.checked_add(Span::new().hours(1)).expect("a time");
        assert_eq!(due(&early, &again, first.timestamp()), Due::Nothing);
    }

    #[test]
    fn a_time_counts_once_and_for_an_hour() {
        let times = schedule("daily 03:00");
        let three = at("2026-11-25 03:00").timestamp();
        let day = |text: &str| due(&times, &at(text), at("2026-11-24 03:00").timestamp());
        assert_eq!(day("2026-11-25 02:59:59"), Due::Nothing);
        assert_eq!(day("2026-11-25 03:00:00"), Due::Now(three));
        assert_eq!(day("2026-11-25 04:00:00"), Due::Now(three));
        assert_eq!(day("2026-11-25 04:00:01"), Due::Missed(three));
        assert_eq!(due(&times, &at("2026-11-25 03:30"), three), Due::Nothing);
        // The clock was set back since.
        assert_eq!(due(&times, &at("2026-11-24 03:30"), three), Due::Nothing);
    }

    fn view(node: u8, role: &str, peer_role: &str, state: &str) -> ResourceView {
        ResourceView {
            node_id: node,
            role: role.to_owned(),
            devices: vec![DeviceView {
                disk_state: "UpToDate".to_owned(),
                ..DeviceView::default()
            }],
            connections: vec![ConnectionView {
                peer_node_id: 1 - node,
                peer_role: peer_role.to_owned(),
                connection_state: "Connected".to_owned(),
                peer_devices: vec![PeerDeviceView {
                    replication_state: state.to_owned(),
                    peer_disk_state: "UpToDate".to_owned(),
                    ..PeerDeviceView::default()
                }],
                ..ConnectionView::default()
            }],
            ..ResourceView::default()
        }
    }

    #[test]
    fn it_is_the_turn_of_one_node_of_the_pair() {
        for (mine, theirs, first) in [
            ("Primary", "Secondary", Turn::Ours),
            ("Secondary", "Primary", Turn::Others),
            ("Secondary", "Secondary", Turn::Ours),
        ] {
            let one = turn(&view(0, mine, theirs, "Established"));
            let other = turn(&view(1, theirs, mine, "Established"));
            assert_eq!(one, first);
            assert_ne!(one, other);
        }
        assert_eq!(
            turn(&view(0, "Primary", "Secondary", "VerifyT")),
            Turn::Others
        );
        assert_eq!(
            turn(&view(0, "Primary", "Secondary", "SyncSource")),
            Turn::Nobodys
        );
        let mut alone = view(0, "Primary", "Unknown", "Off");
        "Connecting".clone_into(&mut alone.connections[0].connection_state);
        assert_eq!(turn(&alone), Turn::Nobodys);
    }
}
