//! Handshakes, sessions and promotions at awkward moments.

use super::*;

/// Rule 4: the mark of a reign, and with it the log, outlives a sync that ends the business of the
/// crashed reign before.
#[test]
fn a_sync_that_ends_during_a_promotion_leaves_the_mark_of_the_new_reign() {
    for steps in 0..60 {
        let mut pair = Pair::synced(Protocol::C);
        assert_eq!(pair.write(0, 0, &[5]), Ok(()));
        // Node 0 dies as primary; its next life is the source of a sync, and is promoted.
        let superblock = pair.nodes[0].superblock.clone().expect("written");
        pair.nodes[1].want_link = false;
        pair.cut();
        let disk = std::mem::take(&mut pair.nodes[0].disk);
        pair.nodes[0] = Node::new(0, Protocol::C, 1);
        pair.nodes[0].disk = disk;
        let crashed = VolumeImage {
            superblock,
            log: vec![0],
            ..*image()
        };
        assert_eq!(pair.attach(0, Box::new(crashed)), Ok(()));
        pair.nodes[1].want_link = true;
        let connect = Command::Connect {
            discard_my_data: false,
        };
        pair.start_command(0, connect);
        while !pair.states()[0].ends_with("SyncSource") {
            assert!(pair.step());
        }
        for _ in 0..steps {
            pair.step();
        }
        let promote = Command::Primary {
            force: false,
            ground: Ground::Operator,
        };
        assert_eq!(pair.command(0, promote), Ok(()));
        assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
        let stored = pair.nodes[0].superblock.as_ref().expect("written");
        assert!(
            stored.primary,
            "promoted {steps} steps after the sync began"
        );
    }
}

/// Rule 4: the table of ranges in flight replaces the log, so a range leaves it only when both
/// copies have the write.
#[test]
fn a_range_stays_tracked_until_both_legs_have_ended() {
    let mut pair = Pair::synced(Protocol::C);
    pair.nodes[0].held = Some(Vec::new());
    let span = Span::new(8192, 512);
    let write = pair.request(0, Op::Write { span, fua: false }, &[9]);
    pair.run();
    let flush = pair.request(0, Op::Flush, &[]);
    pair.run();
    assert_eq!(pair.result(0, flush), Some(Ok(())), "durable on the peer");
    assert_eq!(
        pair.nodes[0].tracked.values().copied().collect::<Vec<_>>(),
        [span]
    );
    for io in pair.nodes[0].held.take().expect("set above") {
        pair.handle(
            0,
            Event::Io {
                io,
                outcome: IoOutcome::Done,
            },
        );
    }
    assert_eq!(pair.result(0, write), Some(Ok(())));
    assert!(pair.nodes[0].tracked.is_empty());
}

/// Rule 1: a write that has completed under protocol A is seen by the next read, also when the
/// disk that it completed on is gone and the peer has it in its queue.
#[test]
fn the_peer_reads_after_the_writes_that_came_before() {
    let mut pair = Pair::synced(Protocol::A);
    pair.nodes[1].held = Some(Vec::new());
    let span = Span::new(8192, 512);
    for stamp in [8, 9] {
        let write = pair.request(0, Op::Write { span, fua: false }, &[stamp]);
        pair.run();
        assert_eq!(pair.result(0, write), Some(Ok(())));
    }
    let volume = VolumeId(0);
    pair.start_command(0, Command::Detach { volume });
    let read = pair.request(0, Op::Read { span }, &[0]);
    pair.run();
    assert_eq!(pair.result(0, read), None, "the second write waits");
    for io in pair.nodes[1].held.take().expect("set above") {
        let outcome = IoOutcome::Done;
        pair.handle(1, Event::Io { io, outcome });
    }
    pair.run();
    assert_eq!(pair.result(0, read), Some(Ok(())));
    assert_eq!(pair.nodes[0].buffers[&Buffer::Request(read)], [9]);
}

/// Rules 1 and 2: an acknowledged flush is one whose own disk flush has ended. Sessions number
/// their flushes from 1 again while those of the last session may still be under way.
#[test]
fn flushes_of_two_sessions_are_told_apart() {
    let mut pair = Pair::synced(Protocol::C);
    let mut held = Vec::new();
    let mut flushes = Vec::new();
    for session in 0..2 {
        assert_eq!(pair.write(0, 0, &[session + 8]), Ok(()));
        pair.nodes[1].held_flushes = Some(Vec::new());
        flushes = (0..4).map(|_| pair.request(0, Op::Flush, &[])).collect();
        pair.run();
        assert!(flushes.iter().all(|f| pair.result(0, *f).is_none()));
        held.extend(pair.nodes[1].held_flushes.take().expect("set above"));
        if session == 0 {
            pair.cut();
            pair.run();
        }
    }
    for io in held.into_iter().rev() {
        let outcome = IoOutcome::Done;
        pair.handle(1, Event::Io { io, outcome });
    }
    pair.run();
    assert!(flushes.iter().all(|f| pair.result(0, *f) == Some(Ok(()))));
}

/// A disk that is lost at any moment of a handshake is not taken for one that takes part.
#[test]
fn a_disk_lost_during_the_handshake_is_made_known() {
    for steps in 0..60 {
        let mut pair = Pair::synced(Protocol::C);
        pair.cut();
        for _ in 0..steps {
            pair.step();
        }
        let volume = VolumeId(0);
        assert_eq!(pair.command(1, Command::Detach { volume }), Ok(()));
        assert_eq!(
            pair.states(),
            [
                "Primary UpToDate Diskless Established",
                "Secondary Diskless UpToDate Established"
            ],
            "lost {steps} steps after the link"
        );
    }
}

/// Rules 1 and 6: what A and B have completed while it was on its way to the peer is on the
/// primary's own disk. That disk is left behind only when the peer has it all, durably.
#[test]
fn a_disk_is_left_only_when_the_peer_holds_what_it_held() {
    let volume = VolumeId(0);
    let current = |pair: &Pair, node: usize| pair.nodes[node].superblock.clone().map(|s| s.current);
    for (protocol, lost) in [
        (Protocol::A, false),
        (Protocol::A, true),
        (Protocol::B, false),
        (Protocol::B, true),
    ] {
        let mut pair = Pair::synced(protocol);
        pair.nodes[1].held = Some(Vec::new());
        assert_eq!(pair.write(0, 8, &[3]), Ok(()));
        pair.start_command(0, Command::Detach { volume });
        let span = Span::new(0, 512);
        let next = pair.request(0, Op::Write { span, fua: false }, &[4]);
        pair.run();
        assert_eq!(current(&pair, 1), current(&pair, 0), "the write is missing");
        pair.nodes[1].held_flushes = Some(Vec::new());
        let held = pair.nodes[1].held.take().expect("set above");
        for io in held {
            let outcome = match lost {
                true => IoOutcome::Failed(5),
                false => IoOutcome::Done,
            };
            pair.handle(1, Event::Io { io, outcome });
        }
        pair.run();
        assert_eq!(current(&pair, 1), current(&pair, 0), "it is not durable");
        if lost {
            assert_eq!(pair.result(0, next), Some(Err(IoFailure::NoData)));
            continue;
        }
        assert_eq!(pair.result(0, next), None);
        for io in pair.nodes[1].held_flushes.take().expect("set above") {
            let outcome = IoOutcome::Done;
            pair.handle(1, Event::Io { io, outcome });
        }
        pair.run();
        assert_eq!(pair.result(0, next), Some(Ok(())));
        assert_ne!(
            current(&pair, 1),
            current(&pair, 0),
            "only this copy counts"
        );
    }
}

/// Rule 7: a node that starts over in the middle of a handshake does not lead to two sessions. The
/// other one has prepared for a session by then of which it has told nobody.
#[test]
fn a_handshake_that_starts_over_ends_in_one_session() {
    let mut started_over = 0;
    for steps in 0..40 {
        let mut pair = Pair::synced(Protocol::C);
        pair.cut();
        pair.connect();
        for _ in 0..steps {
            if let Some((to, data)) = pair.wire.pop_front() {
                pair.deliver(to, data);
            }
        }
        let meeting = pair.states()[0].ends_with("DUnknown Off");
        // A write that the peer lacks changes the generation, and with it what was told.
        let span = Span::new(0, 512);
        let write = pair.request(0, Op::Write { span, fua: false }, &[9]);
        let link = pair.link;
        pair.run();
        assert_eq!(pair.result(0, write), Some(Ok(())), "after {steps} steps");
        assert_eq!(pair.link, link, "the session holds, after {steps} steps");
        let moved = |n: &Notice| matches!(n, Notice::NewGeneration { .. });
        let moves = pair.nodes[0].notices.iter().filter(|n| moved(n)).count();
        started_over += usize::from(meeting && moves > 1);
    }
    assert!(started_over > 0);
}

/// Rule 6: whoever leaves, the copy that a primary without a disk works on is not outdated, and its
/// old disk is not current.
#[test]
fn the_only_copy_is_never_outdated() {
    let volume = VolumeId(0);
    for (node, command) in [
        (0, Command::Disconnect),
        (1, Command::Disconnect),
        (1, Command::Shutdown),
    ] {
        let mut pair = Pair::synced(Protocol::C);
        assert_eq!(pair.command(0, Command::Detach { volume }), Ok(()));
        assert_eq!(pair.write(0, 8, &[3]), Ok(()));
        assert_eq!(pair.command(node, command), Ok(()));
        let theirs = pair.nodes[1].superblock.clone().expect("written");
        assert!(!theirs.outdated && theirs.peers[0].outdated);
        assert_eq!(pair.command(0, Command::Secondary), Ok(()));
        let old = pair.nodes[0].stored();
        assert_eq!(pair.attach(0, old), Ok(()));
        let primary = Command::Primary {
            force: false,
            ground: Ground::Operator,
        };
        assert_eq!(pair.command(0, primary), Err(Refusal::NotProvenCurrent));
    }
}
