//! A peer that asks for more than a well-behaved one can have under way loses its link: what waits
//! for it is bounded.

use super::*;
use crate::engine::message::Digest;
use crate::engine::replica::WAITING_READS;
use crate::engine::verify::QUESTIONS;

const SPAN: Span = Span {
    start: 4096,
    len: 4096,
};

/// Sends to node 1 as node 0 would; no disk operation of node 1 ends meanwhile.
fn send(pair: &mut Pair, message: Message) {
    let mut out = Vec::new();
    let engine = &mut pair.nodes[0].engine;
    engine.send(message, None);
    std::mem::swap(&mut engine.out, &mut out);
    for action in out {
        pair.perform(0, action);
    }
    let (frames, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut pair.wire)
        .into_iter()
        .partition(|(to, _)| matches!(to, To::Frame(1, ..)));
    pair.wire = rest;
    for (to, data) in frames {
        pair.deliver(to, data);
    }
}

fn link(pair: &Pair) -> (ConnectionState, Option<LinkLoss>) {
    let status = pair.nodes[1].engine.status().connection;
    (status.state, status.last_loss)
}

/// Sends as many as may wait and fill the buffers, and then one more.
fn flood(waiting: usize, message: impl Fn(u64) -> Message) -> Pair {
    let mut pair = Pair::synced(Protocol::C);
    let buffers = pair.nodes[1].engine.config.resync_buffers as usize;
    let most = (waiting + buffers) as u64;
    for id in 0..most {
        send(&mut pair, message(id));
    }
    assert_eq!(link(&pair).0, ConnectionState::Connected);
    send(&mut pair, message(most));
    let (state, loss) = link(&pair);
    assert_ne!(state, ConnectionState::Connected);
    assert!(
        matches!(loss, Some(LinkLoss::Protocol(what)) if what.contains("under way")),
        "{loss:?}"
    );
    // What waited for the lost link is forgotten with it, and the next one works.
    pair.run();
    assert!(pair.nodes[1].engine.questions.is_empty());
    assert_eq!(pair.states()[1], "Secondary UpToDate UpToDate Established");
    assert_eq!(pair.write(0, 7, &[11]), Ok(()));
    pair
}

#[test]
fn questions_of_a_verify_are_bounded() {
    flood(QUESTIONS, |id| Message::Verify {
        id,
        volume: VolumeId(0),
        span: SPAN,
        digest: Digest::Crc32c,
        hash: [0; 32],
    });
}

#[test]
fn reads_for_the_peer_are_bounded() {
    flood(WAITING_READS, |id| Message::Read {
        id,
        volume: VolumeId(0),
        span: SPAN,
    });
}
