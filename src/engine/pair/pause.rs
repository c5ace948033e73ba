//! Syncs that are held back, and asked about before they begin.

use super::*;

fn pause(on: bool) -> Command {
    let volume = VolumeId(0);
    let cause = PauseCause::User;
    Command::PauseSync { volume, cause, on }
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
    assert!(peer.paused_by_user && peer.paused_by_peer);
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

#[test]
fn each_cause_counts_for_itself_and_no_block_comes_before_the_peer_knows() {
    let mut pair = behind();
    let volume = VolumeId(0);
    let [user, another] = [PauseCause::User, PauseCause::Dependency];
    let order = |cause, on| Command::PauseSync { volume, cause, on };
    assert_eq!(pair.command(1, order(another, true)), Ok(()));
    assert_eq!(pair.command(1, order(user, true)), Ok(()));
    let connect = Command::Connect {
        discard_my_data: false,
    };
    pair.start_command(1, connect);
    let steps = |pair: &mut Pair| (0..2000).take_while(|_| pair.step()).count();
    assert!(steps(&mut pair) > 0);
    pair.start_command(1, order(user, false));
    steps(&mut pair);
    assert_eq!(
        pair.states()[0],
        "Primary UpToDate Inconsistent PausedSyncS"
    );
    let received = |pair: &Pair| pair.nodes[1].engine.status().connection.peer_devices[0].received;
    assert_eq!(received(&pair), 0);
    pair.start_command(1, order(another, false));
    pair.run();
    assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
}

/// A pause that ends at every moment of a handshake: the peer never goes on believing in it.
#[test]
fn a_pause_that_ends_during_the_handshake_is_over() {
    for moment in 0..200 {
        let mut pair = behind();
        assert_eq!(pair.command(1, pause(true)), Ok(()));
        let connect = Command::Connect {
            discard_my_data: false,
        };
        pair.start_command(1, connect);
        let _ = (0..moment).take_while(|_| pair.step()).count();
        pair.start_command(1, pause(false));
        pair.run();
        assert_eq!(
            pair.states()[0],
            "Primary UpToDate UpToDate Established",
            "{moment}"
        );
    }
}

fn asks(pair: &Pair) -> Option<Refusal> {
    pair.nodes[1].engine.status().connection.reason.clone()
}

#[test]
fn a_guarded_copy_is_left_as_it_is_until_the_sync_is_approved() {
    let mut pair = behind();
    let volume = VolumeId(0);
    assert_eq!(pair.command(1, Command::Guard(true)), Ok(()));
    let connect = Command::Connect {
        discard_my_data: false,
    };
    assert_eq!(pair.command(1, connect), Ok(()));
    pair.run();
    assert_eq!(asks(&pair), Some(Refusal::AsksFirst { volume }));
    let whole = "Secondary Outdated DUnknown Off";
    assert_eq!(pair.states()[1], whole);
    // What is written meanwhile does not reach it either.
    assert_eq!(pair.write(0, 128, &[7; 8]), Ok(()));
    pair.run();
    assert_eq!(pair.states()[1], whole);
    assert_ne!(pair.nodes[1].disk.get(&64), Some(&5));
    assert_ne!(pair.nodes[1].disk.get(&128), Some(&7));
    assert_eq!(pair.command(1, Command::Approve { volume }), Ok(()));
    pair.run();
    assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
    assert_eq!(pair.nodes[1].disk.get(&64), Some(&5));
    // It was for this one sync.
    assert_eq!(pair.command(1, Command::Disconnect), Ok(()));
    assert_eq!(pair.write(0, 64, &[6; 8]), Ok(()));
    let connect = Command::Connect {
        discard_my_data: false,
    };
    assert_eq!(pair.command(1, connect), Ok(()));
    pair.run();
    assert_eq!(asks(&pair), Some(Refusal::AsksFirst { volume }));
    // A later order counts more than a late approval.
    assert_eq!(pair.command(1, Command::Disconnect), Ok(()));
    assert_eq!(pair.command(1, Command::Approve { volume }), Ok(()));
    pair.run();
    assert_eq!(asks(&pair), None);
    assert_eq!(pair.states()[1], whole);
}

#[test]
fn a_copy_that_is_inconsistent_already_is_not_asked_about() {
    let mut pair = behind();
    assert_eq!(pair.command(1, pause(true)), Ok(()));
    let connect = Command::Connect {
        discard_my_data: false,
    };
    pair.start_command(1, connect);
    let _ = (0..2000).take_while(|_| pair.step()).count();
    assert_eq!(
        pair.states()[1],
        "Secondary Inconsistent UpToDate PausedSyncT"
    );
    pair.start_command(1, Command::Guard(true));
    pair.start_command(1, pause(false));
    pair.cut();
    pair.run();
    assert_eq!(asks(&pair), None);
    assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
}
