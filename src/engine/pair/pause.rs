//! Syncs that an operator holds back.

use super::*;

fn pause(on: bool) -> Command {
    let volume = VolumeId(0);
    Command::PauseSync { volume, on }
}

/// A pair that is connected, with a block that only the primary has.
fn behind() -> Pair {
    let mut pair = Pair::synced(Protocol::C);
    assert_eq!(pair.command(1, Command::Disconnect), Ok(()));
    assert_eq!(pair.write(0, 64, &[5; 8]), Ok(()));
    pair
}

#[test]
fn either_side_holds_a_sync_back_until_both_let_it_go() {
    let mut pair = behind();
    assert_eq!(pair.command(0, pause(true)), Ok(()));
    assert_eq!(pair.command(1, pause(true)), Ok(()));
    let connect = Command::Connect {
        discard_my_data: false,
    };
    pair.start_command(1, connect);
    let steps = (0..2000).take_while(|_| pair.step()).count();
    assert!(steps > 0);
    let held = [
        "Primary UpToDate Inconsistent PausedSyncS",
        "Secondary Inconsistent UpToDate PausedSyncT",
    ];
    assert_eq!(pair.states(), held);
    assert_ne!(pair.nodes[1].disk.get(&64), Some(&5));
    let status = pair.nodes[0].engine.status();
    let peer = &status.connection.peer_devices[0];
    assert!(peer.paused_here && peer.paused_by_peer);
    pair.start_command(0, pause(false));
    let _ = (0..500).take_while(|_| pair.step()).count();
    assert_eq!(pair.states(), held);
    pair.start_command(1, pause(false));
    pair.run();
    assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
    assert_eq!(pair.nodes[1].disk.get(&64), Some(&5));
}

#[test]
fn writes_go_on_while_a_sync_is_held_back() {
    let mut pair = behind();
    assert_eq!(pair.command(0, pause(true)), Ok(()));
    let connect = Command::Connect {
        discard_my_data: false,
    };
    pair.start_command(1, connect);
    let _ = (0..500).take_while(|_| pair.step()).count();
    let span = Span::new(128 * 512, 512);
    let id = pair.request(0, Op::Write { span, fua: false }, &[7]);
    let _ = (0..500).take_while(|_| pair.step()).count();
    assert_eq!(pair.result(0, id), Some(Ok(())));
    assert_eq!(pair.nodes[1].disk.get(&128), Some(&7));
    assert_eq!(
        pair.states()[0],
        "Primary UpToDate Inconsistent PausedSyncS"
    );
}
