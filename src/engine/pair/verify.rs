//! Online verify and repair.

use super::*;

fn scope(repair_from: Option<u8>) -> VerifyScope {
    VerifyScope {
        start: None,
        stop: None,
        digest: Digest::Crc32c,
        repair_from: repair_from.map(NodeId),
    }
}

fn verify(scope: VerifyScope) -> Command {
    let volume = VolumeId(0);
    Command::Verify { volume, scope }
}

fn state(pair: &Pair, node: usize) -> VerifyStatus {
    let status = pair.nodes[node].engine.status();
    status.connection.peer_devices[0].verify.clone()
}

fn found(pair: &Pair, node: usize) -> Vec<std::ops::Range<u64>> {
    state(pair, node).found.to_vec()
}

#[test]
fn what_was_changed_behind_our_back_is_found_and_nothing_else() {
    for runner in 0..2 {
        let mut pair = Pair::synced(Protocol::C);
        assert_eq!(pair.write(0, 100, &[5; 64]), Ok(()));
        // First and last sector of the device, a lone one, two neighbours, and an extent of 4 MiB.
        let last = SIZE / 512 - 1;
        for sector in [0, last, 104, 4096, 4097] {
            pair.nodes[1].disk.insert(sector, 77);
        }
        pair.nodes[0].disk.extend((16_384..24_576).map(|s| (s, 99)));
        assert_eq!(pair.command(runner, verify(scope(None))), Ok(()));
        pair.run();
        assert_eq!(
            found(&pair, runner),
            [
                0..4096,
                104 * 512 / 4096 * 4096..104 * 512 / 4096 * 4096 + 4096,
                4096 * 512..4096 * 512 + 4096,
                16_384 * 512..24_576 * 512,
                SIZE - 4096..SIZE,
            ]
        );
        let status = state(&pair, runner);
        assert_eq!((status.state, status.at), (VerifyState::Done, SIZE));
        assert!(status.skipped.is_empty());
        let seen = |to| {
            let volume = VolumeId(0);
            Notice::Replication { volume, to }
        };
        assert!(
            pair.nodes[runner]
                .notices
                .contains(&seen(ReplicationState::VerifyS))
        );
        assert!(
            pair.nodes[1 - runner]
                .notices
                .contains(&seen(ReplicationState::VerifyT))
        );
        assert_eq!(
            pair.nodes[1 - runner].notices.last(),
            Some(&seen(ReplicationState::Established))
        );
    }
}

#[test]
fn a_range_is_looked_at_and_no_more() {
    let mut pair = Pair::synced(Protocol::C);
    for sector in [8, 16, 24] {
        pair.nodes[1].disk.insert(sector, 77);
    }
    let part = VerifyScope {
        start: Some(8192),
        stop: Some(12_288),
        ..scope(None)
    };
    assert_eq!(pair.command(0, verify(part)), Ok(()));
    pair.run();
    assert_eq!(found(&pair, 0), vec![8192..12_288; 1]);
    let none = VerifyScope {
        start: Some(SIZE),
        ..scope(None)
    };
    let refusal = Refusal::EmptyRange {
        volume: VolumeId(0),
    };
    assert_eq!(pair.command(0, verify(none)), Err(refusal));
}

#[test]
fn either_side_can_be_repaired_from_the_other_while_both_stay_in_use() {
    for (runner, from) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut pair = Pair::synced(Protocol::A);
        pair.nodes[0].disk.insert(8, 10);
        pair.nodes[1].disk.insert(8, 20);
        pair.nodes[1].disk.extend((4000..12_000).map(|s| (s, 30)));
        pair.nodes[0].notices.clear();
        assert_eq!(pair.command(runner, verify(scope(Some(from)))), Ok(()));
        pair.run();
        assert!(pair.data(0) == pair.data(1));
        let kept = if from == 0 { 10 } else { 20 };
        assert_eq!(pair.nodes[0].disk.get(&8), Some(&kept));
        let status = state(&pair, runner);
        assert_eq!(status.state, VerifyState::Done);
        assert!(status.found.is_empty());
        assert_eq!(status.repaired, 4096 + 4_096_000);
        let disks =
            |notice: &Notice| matches!(notice, Notice::Disk { .. } | Notice::PeerDisk { .. });
        assert!(!pair.nodes[0].notices.iter().any(disks));
        assert_eq!(pair.states()[0], "Primary UpToDate UpToDate Established");
    }
}

/// A write at every moment of a verify of a single block, in every role and protocol.
#[test]
fn no_write_makes_a_difference_appear() {
    for (protocol, runner) in [
        (Protocol::A, 0),
        (Protocol::A, 1),
        (Protocol::B, 1),
        (Protocol::C, 0),
        (Protocol::C, 1),
    ] {
        for moment in 0.. {
            let mut pair = Pair::synced(protocol);
            let part = VerifyScope {
                start: Some(4096),
                stop: Some(8192),
                ..scope(None)
            };
            pair.start_command(runner, verify(part));
            (0..moment).all(|_| pair.step());
            let over = state(&pair, runner).state == VerifyState::Done;
            let span = Span::new(4096, 8192);
            pair.request(0, Op::Write { span, fua: false }, &[moment + 1; 16]);
            pair.run();
            let status = state(&pair, runner);
            assert!(status.found.is_empty(), "{protocol:?} {runner} {moment}");
            assert_eq!(status.state, VerifyState::Done);
            if over {
                assert!(moment > 3);
                break;
            }
        }
    }
}

/// And of a repair: what was written meanwhile is what both copies have in the end.
#[test]
fn no_repair_overwrites_a_newer_write() {
    for (protocol, runner, from) in [
        (Protocol::A, 0, 0),
        (Protocol::A, 0, 1),
        (Protocol::A, 1, 1),
        (Protocol::C, 1, 0),
        (Protocol::C, 1, 1),
    ] {
        for moment in 0.. {
            let mut pair = Pair::synced(protocol);
            pair.nodes[1].disk.extend((8..24).map(|s| (s, 9)));
            let part = VerifyScope {
                stop: Some(16_384),
                ..scope(Some(from))
            };
            pair.start_command(runner, verify(part));
            (0..moment).all(|_| pair.step());
            let over = state(&pair, runner).state == VerifyState::Done;
            let span = Span::new(4096, 4096);
            let id = pair.request(0, Op::Write { span, fua: false }, &[moment + 100; 8]);
            pair.run();
            assert_eq!(pair.result(0, id), Some(Ok(())));
            assert_eq!(
                pair.data(0),
                pair.data(1),
                "{protocol:?} {runner} {from} {moment}"
            );
            assert_eq!(pair.nodes[0].disk.get(&8), Some(&(moment + 100)));
            if over {
                assert!(moment > 10);
                break;
            }
        }
    }
}

#[test]
fn a_block_that_is_never_left_alone_is_passed_over_and_looked_at_again() {
    let mut pair = Pair::synced(Protocol::C);
    // A write that does not end.
    pair.nodes[0].held = Some(Vec::new());
    let span = Span::new(8192, 4096);
    pair.request(0, Op::Write { span, fua: false }, &[4; 8]);
    let part = VerifyScope {
        stop: Some(1 << 20),
        ..scope(None)
    };
    assert_eq!(pair.command(0, verify(part)), Ok(()));
    pair.run();
    let status = state(&pair, 0);
    assert_eq!(status.state, VerifyState::Done);
    assert_eq!(status.skipped.to_vec(), vec![8192..12_288; 1]);
    assert!(status.found.is_empty());
    // It ends before the next look at it.
    pair.start_command(0, verify(part));
    let held = pair.nodes[0].held.take().expect("held");
    for io in held {
        let outcome = IoOutcome::Done;
        pair.handle(0, Event::Io { io, outcome });
    }
    pair.run();
    assert!(state(&pair, 0).skipped.is_empty());
}

#[test]
fn a_verify_that_was_cut_off_goes_on_where_it_was() {
    let mut pair = Pair::synced(Protocol::C);
    pair.nodes[1].disk.insert(0, 77);
    pair.nodes[1].disk.insert(SIZE / 512 - 1, 77);
    pair.start_command(0, verify(scope(None)));
    while state(&pair, 0).at < SIZE / 2 {
        assert!(pair.step());
    }
    pair.cut();
    let status = state(&pair, 0);
    assert_eq!(status.state, VerifyState::Stopped);
    assert!(status.at >= SIZE / 2 && status.at < SIZE);
    pair.run();
    let count = pair.nodes[0].notices.len();
    assert_eq!(pair.command(0, verify(scope(None))), Ok(()));
    pair.run();
    assert_eq!(found(&pair, 0), [0..4096, SIZE - 4096..SIZE]);
    let checked = { pair.nodes[0].notices[count..].iter() }.find_map(|notice| match notice {
        Notice::VerifyDone { checked, .. } => Some(*checked),
        _ => None,
    });
    assert!(checked.is_some_and(|checked| checked <= SIZE / 2));
}
