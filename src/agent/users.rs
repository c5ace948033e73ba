//! Who uses the front ends of a resource.

use serde_json::Value;

use super::channel::blocking;
use super::protocol::{ErrorKind, ErrorReply, InUse, ServeConfig};
use super::view::ResourceView;
use crate::target::ublk::devices_in_use;
use crate::target::{Client, processes};

/// Refuses, in the words for an operator, if `answer` says that clients have exports of the
/// resource open.
pub fn refuse_if_used(config: &ServeConfig, answer: Value) -> Result<(), ErrorReply> {
    if answer.is_null() {
        return Ok(());
    }
    let used: Vec<InUse> = serde_json::from_value(answer).map_err(|error| {
        ErrorReply::new(
            ErrorKind::Failed,
            format!("the data plane's answer makes no sense: {error}"),
            "agent and data plane must be of the same version",
        )
    })?;
    let exports: Vec<String> = used.iter().map(|used| export(config, used)).collect();
    Err(ErrorReply::new(
        ErrorKind::Refused,
        format!("in use: {}", exports.join("; ")),
        format!(
            "end these clients (or disconnect them: `nbd-client -d`, `qemu-nbd -d`), then repeat \
             the command; `lockstep secondary --force {}` cuts them off",
            config.resource
        ),
    ))
}

/// Fills in which block devices somebody has open: a data plane cannot see it. It means a look at
/// every process, so that it is done for those who look at a status, not for those who wait.
pub async fn find_openers(views: &mut [ResourceView]) {
    let devices = || views.iter().flat_map(|view| &view.devices);
    let serving = devices().filter(|device| device.serving);
    let ids: Vec<u32> = serving
        .filter_map(|device| u32::try_from(device.minor).ok())
        .collect();
    if ids.is_empty() {
        return;
    }
    let used = blocking(move || devices_in_use(&ids)).await;
    let used = used.unwrap_or_default();
    for device in views.iter_mut().flat_map(|view| &mut view.devices) {
        let minor = u32::try_from(device.minor);
        device.open |= minor.is_ok_and(|minor| used.contains(&minor));
    }
}

fn export(config: &ServeConfig, used: &InUse) -> String {
    let volume = config.volumes.iter().find(|v| v.volume == used.volume);
    let path = volume.map_or(String::new(), |volume| volume.front.path());
    let mut clients: Vec<String> = used.clients.iter().map(name).collect();
    clients.sort_unstable();
    // Clients open several connections at once.
    clients.dedup();
    format!("{path} by {}", clients.join(", "))
}

fn name(client: &Client) -> String {
    match client {
        Client::Process(pid) => processes::name(*pid),
        Client::Address(address) => address.to_string(),
        Client::Unknown => "a client that the system does not name".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::plan::tests::plan;
    use crate::agent::protocol::FrontEnd;
    use serde_json::json;

    #[test]
    fn clients_are_named_once_each() {
        let plan = plan(
            "r0",
            FrontEnd::NbdTcp {
                address: "127.0.0.1:10809".to_owned(),
                export: "r0".to_owned(),
            },
        );
        assert_eq!(refuse_if_used(&plan.serve, Value::Null), Ok(()));
        let me = std::process::id();
        let far = Client::Address("192.0.2.1:5000".parse().expect("an address"));
        let used = InUse {
            volume: 0,
            clients: vec![Client::Process(me), far, Client::Process(me)],
        };
        let refused = refuse_if_used(&plan.serve, json!([used])).expect_err("in use");
        assert_eq!(refused.exit, 3);
        let comm = std::fs::read_to_string("/proc/self/comm").expect("a name");
        let expected = format!(
            "in use: nbd://127.0.0.1:10809/r0 by 192.0.2.1:5000, {} ({me})",
            comm.trim()
        );
        assert_eq!(refused.reason, expected);
        assert!(refused.help.contains("lockstep secondary --force r0"));
    }

    #[test]
    fn an_answer_that_is_no_list_is_not_taken_for_success() {
        let plan = plan("r0", FrontEnd::Ublk { minor: 1 });
        let refused = refuse_if_used(&plan.serve, json!({"done": true})).expect_err("nonsense");
        assert_eq!(refused.exit, 1);
    }
}
