//! Disks that come and go while applications go on, and disks of different kinds.

use super::*;

#[test]
fn a_primary_takes_its_disk_back_while_applications_go_on() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let mut pair = Pair::synced(protocol);
        assert_eq!(pair.write(0, 5, &[1, 2, 3]), Ok(()));
        let volume = VolumeId(0);
        assert_eq!(pair.command(0, Command::Detach { volume }), Ok(()));
        assert_eq!(pair.states()[0], "Primary Diskless UpToDate Established");
        assert_eq!(pair.write(0, 6, &[12]), Ok(()));
        let flush = pair.request(0, Op::Flush, &[]);
        pair.run();
        assert_eq!(pair.result(0, flush), Some(Ok(())));
        // A disk of another origin would cost the only copy in use.
        let mut foreign = pair.nodes[0].stored();
        foreign.superblock.current = Generation(0xbad);
        assert!(matches!(
            pair.attach(0, foreign),
            Err(Refusal::UnrelatedData { .. })
        ));
        let mut small = pair.nodes[0].stored();
        small.capacity = SIZE / 2;
        assert!(matches!(
            pair.attach(0, small),
            Err(Refusal::DiskTooSmall { .. })
        ));
        let disk = pair.nodes[0].stored();
        pair.next += 1;
        let id = CommandId(pair.next);
        let attach = Command::Attach {
            volume,
            image: disk,
        };
        pair.handle(
            0,
            Event::Command {
                id,
                command: attach,
            },
        );
        // Requests of every moment between here and the end of the sync are answered, and well.
        let mut asked = Vec::new();
        for round in 0..200u64 {
            let span = Span::new(round % 7 * 512, 512);
            asked.push(pair.request(
                0,
                Op::Write {
                    span,
                    fua: round % 3 == 0,
                },
                &[1000 + round],
            ));
            let span = Span::new(512 * 5, 1024);
            asked.push(pair.request(0, Op::Read { span }, &[0, 0]));
            for _ in 0..2 {
                if let Some((to, data)) = pair.wire.pop_front() {
                    pair.deliver(to, data);
                }
            }
            if round % 20 == 19 {
                pair.run();
            }
        }
        pair.run();
        for request in asked {
            assert_eq!(pair.result(0, request), Some(Ok(())));
        }
        assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
        assert_eq!(pair.states()[1], "Secondary UpToDate UpToDate Established");
        assert_eq!(pair.data(0), pair.data(1));
        assert!(
            pair.nodes[0]
                .superblock
                .as_ref()
                .is_some_and(|s| s.primary && !s.inconsistent)
        );
        // From here on the own disk counts again.
        pair.nodes[1].want_link = false;
        pair.cut();
        assert_eq!(pair.write(0, 9, &[77]), Ok(()));
    }
}

#[test]
fn a_primary_without_disk_and_peer_takes_none() {
    let mut pair = Pair::synced(Protocol::C);
    let volume = VolumeId(0);
    assert_eq!(pair.command(0, Command::Detach { volume }), Ok(()));
    let disk = pair.nodes[0].stored();
    pair.nodes[1].want_link = false;
    pair.cut();
    assert_eq!(pair.attach(0, disk), Err(Refusal::NotConnected));
}

#[test]
fn an_interrupted_sync_onto_the_primary_goes_on_at_the_next_connect() {
    let mut pair = Pair::synced(Protocol::C);
    let volume = VolumeId(0);
    assert_eq!(pair.command(0, Command::Detach { volume }), Ok(()));
    assert_eq!(pair.write(0, 6, &[12]), Ok(()));
    let disk = pair.nodes[0].stored();
    pair.next += 1;
    let id = CommandId(pair.next);
    pair.handle(
        0,
        Event::Command {
            id,
            command: Command::Attach {
                volume,
                image: disk,
            },
        },
    );
    while pair.states()[0] != "Primary Inconsistent UpToDate SyncTarget" {
        match pair.wire.pop_front() {
            Some((to, data)) => pair.deliver(to, data),
            None => pair.connect(),
        }
    }
    pair.nodes[1].want_link = false;
    pair.cut();
    // The half-synced disk answers nothing.
    assert_eq!(pair.write(0, 6, &[13]), Err(IoFailure::NoData));
    let read = pair.request(
        0,
        Op::Read {
            span: Span::new(512 * 6, 512),
        },
        &[0],
    );
    assert_eq!(pair.result(0, read), Some(Err(IoFailure::NoData)));
    pair.nodes[1].want_link = true;
    pair.run();
    assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
    assert_eq!(pair.data(0), pair.data(1));
}

#[test]
fn an_orderly_detach_leaves_nothing_to_suppose() {
    // A secondary: its note of unflushed writes is cleared and its bits are stored.
    let mut pair = Pair::synced(Protocol::C);
    let volume = VolumeId(0);
    assert_eq!(pair.write(0, 8, &[3]), Ok(()));
    assert!(
        pair.nodes[1]
            .superblock
            .as_ref()
            .is_some_and(|s| s.unflushed)
    );
    assert_eq!(pair.command(1, Command::Detach { volume }), Ok(()));
    assert!(pair.nodes[1].closed);
    assert!(
        pair.nodes[1]
            .superblock
            .as_ref()
            .is_some_and(|s| !s.unflushed)
    );
    // A primary with a peer: the log does not count any more, because the peer's record does.
    let mut pair = Pair::synced(Protocol::C);
    assert_eq!(pair.write(0, 8, &[3]), Ok(()));
    assert!(pair.nodes[0].superblock.as_ref().is_some_and(|s| s.primary));
    assert_eq!(pair.command(0, Command::Detach { volume }), Ok(()));
    let own = pair.nodes[0].superblock.clone().expect("written");
    let theirs = pair.nodes[1].superblock.clone().expect("written");
    assert!(pair.nodes[0].closed && !own.primary);
    assert!(theirs.peers[0].want_full && theirs.peers[0].base == own.current);
}

#[test]
fn a_detach_with_bits_that_the_disk_lacks_stores_them_first() {
    let mut pair = Pair::synced(Protocol::C);
    let volume = VolumeId(0);
    pair.nodes[1].want_link = false;
    pair.cut();
    assert_eq!(pair.write(0, 8, &[3]), Ok(()));
    assert_eq!(pair.command(0, Command::Secondary), Ok(()));
    assert_eq!(pair.command(0, Command::Detach { volume }), Ok(()));
    assert!(pair.nodes[0].closed);
    assert_eq!(
        pair.nodes[0].bitmap[0], 0b10,
        "sectors 8 to 15 are the second block"
    );
}

#[test]
fn a_disk_that_does_not_answer_its_primary_is_left_again() {
    let mut pair = Pair::synced(Protocol::C);
    let volume = VolumeId(0);
    assert_eq!(pair.command(0, Command::Detach { volume }), Ok(()));
    let image = pair.nodes[0].stored();
    pair.next += 1;
    let id = CommandId(pair.next);
    let command = Command::Attach { volume, image };
    pair.handle(0, Event::Command { id, command });
    // The superblock that says that this copy is behind never lands.
    pair.wire.retain(|(to, _)| !matches!(to, To::Io(0, ..)));
    let write = pair.request(
        0,
        Op::Write {
            span: Span::new(0, 512),
            fua: false,
        },
        &[9],
    );
    pair.run();
    assert_eq!(pair.result(0, write), None, "held");
    assert!(pair.nodes[0].engine.status().suspended);
    let late = pair.nodes[0].engine.next_deadline().expect("bounded");
    pair.now = late;
    pair.handle(0, Event::Tick);
    pair.run();
    assert_eq!(pair.result(0, write), Some(Ok(())));
    assert_eq!(pair.states()[0], "Primary Diskless UpToDate Established");
    let refused = Err(Refusal::Metadata { errno: 110 });
    assert!(pair.nodes[0].results.contains(&(id, refused)));
}

/// A disk with other traits than the usual one.
fn disk_with(logical_block: u32, discard: bool) -> Box<VolumeImage> {
    Box::new(VolumeImage {
        logical_block,
        discard,
        ..*image()
    })
}

#[test]
fn front_ends_offer_what_both_disks_can_do() {
    for (mine, theirs, block, discard) in [
        ((512, true), (512, true), 512, true),
        ((512, true), (4096, true), 4096, true),
        ((4096, true), (512, false), 4096, false),
        ((512, false), (512, true), 512, false),
    ] {
        let mut pair = Pair::new(Protocol::C);
        assert_eq!(pair.attach(0, disk_with(mine.0, mine.1)), Ok(()));
        assert_eq!(pair.attach(1, disk_with(theirs.0, theirs.1)), Ok(()));
        for node in 0..2 {
            let connect = Command::Connect {
                discard_my_data: false,
            };
            assert_eq!(pair.command(node, connect), Ok(()));
        }
        let force = Command::Primary {
            force: true,
            ground: Ground::Operator,
        };
        assert_eq!(pair.command(0, force), Ok(()));
        for node in &pair.nodes {
            let expected = Shape {
                bytes: SIZE,
                logical_block: block,
                discard,
            };
            assert_eq!(node.shape, Some(expected), "{mine:?} {theirs:?}");
        }
        assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
    }
}

#[test]
fn a_peer_with_larger_blocks_than_the_device_in_use_is_refused() {
    let mut pair = Pair::new(Protocol::C);
    assert_eq!(pair.attach(0, disk_with(512, true)), Ok(()));
    let force = Command::Primary {
        force: true,
        ground: Ground::Operator,
    };
    assert_eq!(pair.command(0, force), Ok(()));
    assert_eq!(pair.attach(1, disk_with(4096, true)), Ok(()));
    let connect = || Command::Connect {
        discard_my_data: false,
    };
    for node in 0..2 {
        assert_eq!(pair.command(node, connect()), Ok(()));
    }
    let mismatch = Some(Refusal::BlockSizeMismatch {
        volume: VolumeId(0),
    });
    for node in &pair.nodes {
        assert_eq!(node.engine.status().connection.reason, mismatch);
    }
    // As the message says: made anew, the device has the larger blocks.
    assert_eq!(pair.command(0, Command::Secondary), Ok(()));
    for node in 0..2 {
        assert_eq!(pair.command(node, connect()), Ok(()));
    }
    pair.run();
    let unforced = Command::Primary {
        force: false,
        ground: Ground::Operator,
    };
    assert_eq!(pair.command(0, unforced), Ok(()));
    assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
    assert_eq!(pair.nodes[0].shape.map(|s| s.logical_block), Some(4096));
}
