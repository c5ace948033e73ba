//! What an operator orders for one resource.

use std::fmt;

use super::plan::Plan;
use super::protocol::VerifyOptions;

/// An order, for the keeper of its resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    Up,
    Down,
    Attach(Option<u16>),
    Detach(Option<u16>),
    Connect {
        discard_my_data: bool,
    },
    Disconnect,
    Primary {
        force: bool,
    },
    Secondary {
        force: bool,
    },
    Invalidate(Option<u16>),
    PauseSync {
        volume: Option<u16>,
        on: bool,
    },
    Verify(Option<u16>, VerifyOptions),
    /// Takes over options that can change while the resource runs.
    Adjust(Box<Plan>),
}

/// As the operator typed it, for the log.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, volume) = match self {
            Order::Up => ("up", None),
            Order::Down => ("down", None),
            Order::Attach(volume) => ("attach", *volume),
            Order::Detach(volume) => ("detach", *volume),
            Order::Connect {
                discard_my_data: true,
            } => ("connect --discard-my-data", None),
            Order::Connect { .. } => ("connect", None),
            Order::Disconnect => ("disconnect", None),
            Order::Primary { force: true } => ("primary --force", None),
            Order::Primary { .. } => ("primary", None),
            Order::Secondary { force: true } => ("secondary --force", None),
            Order::Secondary { .. } => ("secondary", None),
            Order::Invalidate(volume) => ("invalidate", *volume),
            Order::PauseSync { volume, on: true } => ("pause-sync", *volume),
            Order::PauseSync { volume, .. } => ("resume-sync", *volume),
            Order::Verify(volume, VerifyOptions { repair: true, .. }) => {
                ("verify --repair", *volume)
            }
            Order::Verify(volume, _) => ("verify", *volume),
            // The plan holds the secret.
            Order::Adjust(_) => ("adjust", None),
        };
        f.write_str(verb)?;
        match volume {
            Some(volume) => write!(f, " volume {volume}"),
            None => Ok(()),
        }
    }
}
