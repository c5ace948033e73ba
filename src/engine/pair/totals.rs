//! What a finished sync tells, on either side.

use super::*;

/// Bytes copied and found equal, of every sync that the node has seen the end of.
fn syncs(pair: &Pair, node: usize) -> Vec<(u64, u64)> {
    let told = pair.nodes[node].notices.iter();
    told.filter_map(|notice| match notice {
        Notice::SyncDone {
            copied, compared, ..
        } => Some((*copied, *compared)),
        _ => None,
    })
    .collect()
}

#[test]
fn both_sides_tell_once_what_a_sync_has_copied() {
    let mut pair = Pair::synced(Protocol::C);
    for node in 0..2 {
        assert_eq!(syncs(&pair, node), [(SIZE, 0)], "node {node}");
    }
    // What the second sync copies is not added to the first.
    assert_eq!(pair.command(1, Command::Disconnect), Ok(()));
    assert_eq!(pair.write(0, 64, &[5; 8]), Ok(()));
    let connect = Command::Connect {
        discard_my_data: false,
    };
    assert_eq!(pair.command(1, connect), Ok(()));
    pair.run();
    for node in 0..2 {
        assert_eq!(syncs(&pair, node), [(SIZE, 0), (4096, 0)], "node {node}");
    }
}

#[test]
fn a_sync_that_was_cut_short_is_not_counted_with_the_next() {
    let mut pair = Pair::synced(Protocol::C);
    assert_eq!(pair.command(1, Command::Disconnect), Ok(()));
    let blocks = 8 << 20 >> 9;
    for first in (0..blocks).step_by(2048) {
        assert_eq!(pair.write(0, first, &[5; 2048]), Ok(()));
    }
    let connect = Command::Connect {
        discard_my_data: false,
    };
    pair.start_command(1, connect);
    let received = |pair: &Pair| {
        let status = pair.nodes[1].engine.status();
        status.connection.peer_devices[0].received
    };
    let before = received(&pair);
    while received(&pair) < before + (2 << 20) {
        assert!(pair.step());
    }
    pair.cut();
    pair.run();
    let [source, target] = [0, 1].map(|node| syncs(&pair, node));
    assert_eq!(source.len(), 2, "{source:?}");
    assert_eq!(source, target);
    // A repair copies, and is no sync.
    let sent = target.len();
    pair.nodes[1].disk.insert(100, 77);
    let volume = VolumeId(0);
    let scope = VerifyScope {
        start: None,
        stop: None,
        digest: Digest::Crc32c,
        repair_from: Some(NodeId(0)),
    };
    assert_eq!(pair.command(0, Command::Verify { volume, scope }), Ok(()));
    pair.run();
    assert_eq!(syncs(&pair, 1).len(), sent);
}
