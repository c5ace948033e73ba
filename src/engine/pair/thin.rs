//! Syncs of disks with holes.

use super::*;

/// A pair of which the second node has everything to get, and garbage where the first has holes.
fn fresh() -> Pair {
    let mut pair = Pair::new(Protocol::C);
    for node in 0..2 {
        assert_eq!(pair.attach(node, image()), Ok(()));
    }
    pair.nodes[0].disk.extend((20_480..20_736).map(|s| (s, 9)));
    pair.nodes[0].disk.extend((40_000..40_256).map(|s| (s, 0)));
    pair.nodes[1]
        .disk
        .extend((0..131_072).step_by(100).map(|s| (s, 3)));
    for node in 0..2 {
        let connect = Command::Connect {
            discard_my_data: false,
        };
        assert_eq!(pair.command(node, connect), Ok(()));
    }
    pair
}

#[test]
fn holes_and_zeroes_are_made_at_the_target_and_not_sent() {
    let mut pair = fresh();
    let force = Command::Primary {
        force: true,
        ground: Ground::Operator,
    };
    assert_eq!(pair.command(0, force), Ok(()));
    pair.run();
    assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
    assert!(pair.data(0) == pair.data(1));
    let sent = pair.nodes[0].engine.status().connection.peer_devices[0].sent;
    // 256 sectors, and what lies beside them in the same blocks of 4 KiB.
    assert!((128 << 10..=256 << 10).contains(&sent), "{sent}");
}

/// A write that comes while a hole is on its way to the target is not lost under it.
#[test]
fn no_hole_goes_over_a_newer_write() {
    for moment in (0..400).step_by(3) {
        let mut pair = fresh();
        let force = Command::Primary {
            force: true,
            ground: Ground::Operator,
        };
        pair.start_command(0, force);
        (0..moment).all(|_| pair.step());
        let span = Span::new(50 << 20, 4096);
        let op = Op::Write { span, fua: false };
        let id = pair.request(0, op, &[moment + 1; 8]);
        pair.run();
        let expected = pair.result(0, id) == Some(Ok(()));
        let stored = pair.nodes[1].disk.get(&((50 << 20) / 512)).copied();
        assert_eq!(stored == Some(moment + 1), expected, "{moment}");
        assert!(pair.data(0) == pair.data(1), "{moment}");
    }
}
