//! Odd cases, with the hand-written client.

use std::io::Write;
use std::time::{Duration, Instant};

use lockstep::engine::{IoFailure, Op, Span};
use lockstep::target::MAX_DATA;
use lockstep::target::nbd::MAX_CONNECTIONS;
use lockstep::target::nbd::protocol::{
    CMD_BLOCK_STATUS, CMD_DISC, CMD_FLAG_DF, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ,
    CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, MAX_REQUEST, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO,
    OPTION_MAGIC, REP_ACK, REP_ERR_POLICY, REPLY_BLOCK_STATUS, REPLY_ERROR, REPLY_NONE,
    REPLY_OFFSET_DATA,
};

use crate::client::{Client, Payload, request};
use crate::harness::{Server, Setup};

const EIO: u32 = 5;
const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;

use Payload::{Data, Length};

const GO: &[u8] = b"\x00\x00\x00\x02r0\x00\x00";

fn both(setup: Setup) -> [Server; 2] {
    [Server::unix(setup.clone()), Server::tcp(setup)]
}

/// A new client gets its data: the server is well.
fn assert_serves(server: &Server) {
    let mut client = Client::simple(&server.place);
    client.call(CMD_READ, 0, 0, Length(4096), 0);
}

#[test]
fn garbage_is_dropped() {
    for server in both(Setup::default()) {
        let mut client = Client::connect(&server.place);
        client.read(18);
        client.write(b"GET / HTTP/1.1\r\nHost: r0\r\n\r\n");
        assert!(client.is_hung_up(0));

        let mut client = Client::greeted(&server.place);
        client.write(&[0xee; 64]);
        assert!(client.is_hung_up(0));

        let mut client = Client::greeted(&server.place);
        client.write(&OPTION_MAGIC.to_be_bytes());
        client.write(b"\x00\x00\x00\x07\xff\xff\xff\xff");
        assert!(client.is_hung_up(0));

        let mut client = Client::simple(&server.place);
        let mut bytes = request(CMD_READ, 0, 1, 0, 512);
        bytes[0] ^= 1;
        client.write(&bytes);
        assert!(client.is_hung_up(0));
        assert_serves(&server);
        server.wait("end of the connections", |state| state.connections == 0);
    }
}

#[test]
fn a_stalled_handshake_is_dropped() {
    let server = Server::unix(Setup {
        // Long enough for a slow machine to finish a handshake in it.
        handshake_timeout: Duration::from_secs(2),
        ..Setup::default()
    });
    let mut silent = Client::connect(&server.place);
    let mut slow = Client::greeted(&server.place);
    slow.write(&OPTION_MAGIC.to_be_bytes());
    let mut served = Client::simple(&server.place);
    // Reading waits for 20 s at most.
    assert!(silent.is_hung_up(18));
    assert!(slow.is_hung_up(0));
    served.call(CMD_READ, 0, 0, Length(512), 0);
}

#[test]
fn the_handshake_can_end_in_other_ways() {
    let server = Server::unix(Setup::default());
    let mut client = Client::greeted(&server.place);
    assert_eq!(client.option(OPT_ABORT, b""), [(REP_ACK, Vec::new())]);
    assert!(client.is_hung_up(0));

    // Byte by byte.
    let mut client = Client::connect(&server.place);
    client.read(18);
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(OPT_EXPORT_NAME.to_be_bytes());
    bytes.extend(b"\x00\x00\x00\x02r0");
    bytes.extend(request(CMD_FLUSH, 0, 9, 0, 0));
    for byte in bytes {
        client.write(&[byte]);
    }
    assert_eq!(&client.read(10)[..8], &(64u64 << 20).to_be_bytes());
    assert_eq!(client.reply(0).cookie, 9);

    let refusing = Server::unix(Setup {
        refusal: Some("the primary is alpha"),
        depth: 0,
        ..Setup::default()
    });
    let mut client = Client::greeted(&refusing.place);
    let text = b"the primary is alpha".to_vec();
    assert_eq!(client.option(OPT_GO, GO), [(REP_ERR_POLICY, text)]);
    client.write(&OPTION_MAGIC.to_be_bytes());
    client.write(b"\x00\x00\x00\x01\x00\x00\x00\x02r0");
    assert!(client.is_hung_up(0));
}

#[test]
fn bad_requests_are_answered_and_the_stream_goes_on() {
    for server in both(Setup::default()) {
        for structured in [false, true] {
            let connect = if structured {
                Client::structured
            } else {
                Client::simple
            };
            let mut client = connect(&server.place);
            let end = 64u64 << 20;
            client.call(CMD_READ, 0, 0, Length(0), EINVAL);
            client.call(CMD_READ, 0, 1, Length(512), EINVAL);
            client.call(CMD_READ, 0, end, Length(512), EINVAL);
            client.call(CMD_READ, 0, 0, Length(MAX_REQUEST + 512), EINVAL);
            client.call(CMD_WRITE, 0, 0, Data(&[1; 100]), EINVAL);
            client.call(CMD_WRITE, 0, end - 512, Data(&[1; 1024]), ENOSPC);
            client.call(
                CMD_WRITE,
                0,
                0,
                Data(&vec![1; MAX_REQUEST as usize + 512]),
                EINVAL,
            );
            client.call(CMD_WRITE_ZEROES, 0, end, Length(512), ENOSPC);
            client.call(CMD_TRIM, 0, end, Length(512), EINVAL);
            client.call(5, 0, 0, Length(512), EINVAL);
            client.call(99, 0, 0, Length(512), EINVAL);
            client.call(CMD_READ, 1 << 9, 0, Length(512), EINVAL);
            if !structured {
                client.call(CMD_READ, CMD_FLAG_DF, 0, Length(512), EINVAL);
                client.call(CMD_BLOCK_STATUS, 0, 0, Length(512), EINVAL);
            }
            assert!(
                server.with(|state| state.log.is_empty()),
                "nothing reaches the disk"
            );
        }
        assert_serves(&server);
    }
}

#[test]
fn structured_replies_are_well_formed() {
    let server = Server::unix(Setup::default());
    let mut client = Client::structured(&server.place);
    let reply = client.call(CMD_WRITE, CMD_FLAG_FUA, 4096, Data(&[7; 512]), 0);
    assert_eq!((reply.kind, reply.data.len()), (REPLY_NONE, 0));
    let reply = client.call(CMD_READ, CMD_FLAG_DF, 4096, Length(512), 0);
    assert_eq!(reply.kind, REPLY_OFFSET_DATA);
    assert_eq!(reply.data[..8], 4096u64.to_be_bytes());
    assert_eq!(reply.data[8..], [7; 512]);
    let reply = client.call(CMD_BLOCK_STATUS, 0, 0, Length(1 << 20), 0);
    assert_eq!(reply.kind, REPLY_BLOCK_STATUS);
    assert_eq!(
        reply.data,
        b"\x00\x00\x00\x01\x00\x10\x00\x00\x00\x00\x00\x00"
    );
    let reply = client.call(CMD_READ, 0, 3, Length(512), EINVAL);
    assert_eq!(reply.kind, REPLY_ERROR);
    assert!(!reply.data.is_empty(), "a message");
}

#[test]
fn long_requests_are_split_at_the_boundaries() {
    let setup = Setup {
        size: 512 << 20,
        ..Setup::default()
    };
    for server in both(setup) {
        let mut client = Client::simple(&server.place);
        let most = MAX_DATA as usize;
        for length in [most - 512, most, most + 512, 3 * most, 32 * most] {
            let data: Vec<u8> = (0..length).map(|at| (at / 512 % 251) as u8).collect();
            server.with(|state| state.log.clear());
            client.call(CMD_WRITE, CMD_FLAG_FUA, 512, Data(&data), 0);
            let parts = server.with(|state| state.log.len());
            assert_eq!(parts, length.div_ceil(most));
            let durable = |op: &Op| matches!(op, Op::Write { fua: true, .. });
            assert!(server.with(|state| state.log.iter().all(durable)));
            let reply = client.call(CMD_READ, 0, 512, Length(length as u32), 0);
            assert!(reply.data == data, "{length} bytes");
        }
        server.with(|state| state.log.clear());
        client.call(
            CMD_WRITE_ZEROES,
            CMD_FLAG_NO_HOLE,
            4096,
            Length(200 << 20),
            0,
        );
        let mut log = server.with(|state| std::mem::take(&mut state.log));
        log.reverse();
        log.sort_by_key(|op| match op {
            Op::WriteZeroes { span, .. } => span.start,
            other => panic!("{other:?}"),
        });
        let cut = |start: u64, end: u64| Op::WriteZeroes {
            span: Span::new(start, (end - start) as u32),
            unmap: false,
            fua: false,
        };
        let mib = 1 << 20;
        let expected = [
            cut(4096, 64 * mib),
            cut(64 * mib, 128 * mib),
            cut(128 * mib, 192 * mib),
            cut(192 * mib, 200 * mib + 4096),
        ];
        assert_eq!(log, expected);
    }
}

#[test]
fn a_durable_trim_is_flushed() {
    let server = Server::unix(Setup::default());
    let mut client = Client::simple(&server.place);
    client.call(CMD_TRIM, CMD_FLAG_FUA, 0, Length(1 << 20), 0);
    let span = Span::new(0, 1 << 20);
    assert_eq!(
        server.with(|state| state.log.clone()),
        [Op::Discard { span }, Op::Flush]
    );
    client.call(CMD_TRIM, 0, 0, Length(1 << 20), 0);
    assert_eq!(server.with(|state| state.log.len()), 3);
}

#[test]
fn a_flush_covers_the_writes_of_other_connections() {
    let server = Server::tcp(Setup::default());
    let mut writer = Client::simple(&server.place);
    let mut flusher = Client::structured(&server.place);
    for round in 0..50u64 {
        writer.call(CMD_WRITE, 0, round * 512, Data(&[round as u8; 512]), 0);
        flusher.call(CMD_FLUSH, 0, 0, Length(0), 0);
        let read = flusher.call(CMD_READ, 0, round * 512, Length(512), 0);
        assert_eq!(read.data[8], round as u8);
    }
    let order = server.with(|state| std::mem::take(&mut state.log));
    for calls in order.chunks(3) {
        assert!(
            matches!(calls, [Op::Write { .. }, Op::Flush, Op::Read { .. }]),
            "{calls:?}"
        );
    }
}

#[test]
fn errors_reach_the_client() {
    let server = Server::unix(Setup::default());
    let mut client = Client::structured(&server.place);
    let errors = [
        (IoFailure::NotPrimary, ESHUTDOWN),
        (IoFailure::NoData, EIO),
        (IoFailure::Disk(5), EIO),
        (IoFailure::BadRequest, EINVAL),
    ];
    for (failure, error) in errors {
        server.with(|state| state.fail = Some(failure));
        client.call(CMD_READ, 0, 0, Length(3 << 20), error);
        client.call(CMD_WRITE, 0, 0, Data(&[0; 512]), error);
        client.call(CMD_TRIM, CMD_FLAG_FUA, 0, Length(4096), error);
        client.call(CMD_FLUSH, 0, 0, Length(0), error);
    }
    server.with(|state| state.fail = None);
    client.call(CMD_READ, 0, 0, Length(MAX_REQUEST), 0);
}

#[test]
fn a_read_only_export_is_not_written() {
    let server = Server::unix(Setup {
        read_only: true,
        ..Setup::default()
    });
    let mut client = Client::simple(&server.place);
    client.call(CMD_WRITE, 0, 0, Data(&[1; 4096]), EPERM);
    client.call(CMD_TRIM, 0, 0, Length(4096), EPERM);
    client.call(CMD_WRITE_ZEROES, 0, 0, Length(4096), EPERM);
    client.call(CMD_READ, 0, 0, Length(4096), 0);
    assert_eq!(server.with(|state| state.log.len()), 1);
}

#[test]
fn a_client_may_vanish_in_the_middle_of_a_write() {
    for server in both(Setup::default()) {
        for sent in [0, 100, 60_000, 700_000, MAX_DATA as usize + 5000] {
            let mut client = Client::simple(&server.place);
            client.write(&request(CMD_WRITE, 0, 1, 0, 4 * MAX_DATA));
            client.write(&vec![9; sent]);
            drop(client);
            server.wait("end of the connection", |state| state.connections == 0);
        }
        // Whole parts may have been written, a torn one never.
        server.with(|state| {
            for op in &state.log {
                let span = Span::new(0, MAX_DATA);
                assert_eq!(*op, Op::Write { span, fua: false });
            }
            assert!(
                state.disk[MAX_DATA as usize..]
                    .iter()
                    .all(|byte| *byte == 0)
            );
        });
        assert_serves(&server);
        let mut client = Client::simple(&server.place);
        client.call(CMD_READ, 0, 0, Length(MAX_REQUEST), 0);
    }
}

#[test]
fn a_client_may_vanish_with_requests_in_flight() {
    for server in both(Setup {
        depth: 4,
        ..Setup::default()
    }) {
        for notices in [true, false, true] {
            server.with(|state| state.hold = true);
            let mut client = Client::simple(&server.place);
            client.send(CMD_READ, 0, 1, 0, Length(2 * MAX_DATA));
            client.send(CMD_WRITE, 0, 2, 0, Data(&[1; 512]));
            client.send(CMD_TRIM, CMD_FLAG_FUA, 3, 0, Length(512));
            if !notices {
                // This one finds no tag, so the server does not read and sees no end.
                client.send(CMD_FLUSH, 0, 4, 0, Length(0));
            }
            server.wait("four requests", |state| state.held == 4);
            drop(client);
            if notices {
                server.wait("end of the connection", |state| state.connections == 0);
            }
            // The engine still has all tags; another client waits for them.
            let mut other = Client::simple(&server.place);
            other.send(CMD_READ, 0, 5, 0, Length(4 * MAX_DATA));
            std::thread::sleep(Duration::from_millis(30));
            server.with(|state| state.hold = false);
            let start = Instant::now();
            assert_eq!(other.reply(4 * MAX_DATA as usize).error, 0);
            // At once, not when the timer for stalled clients happens to fire.
            assert!(start.elapsed() < Duration::from_secs(15));
            drop(other);
            server.wait("end of the connections", |state| state.connections == 0);
        }
    }
}

#[test]
fn without_tags_the_socket_is_not_read() {
    let server = Server::unix(Setup {
        depth: 2,
        ..Setup::default()
    });
    server.with(|state| state.hold = true);
    let mut client = Client::simple(&server.place);
    let mut other = Client::simple(&server.place);
    for cookie in 0..100 {
        client.send(CMD_READ, 0, cookie, cookie * 512, Length(512));
        other.send(
            CMD_WRITE,
            0,
            cookie,
            cookie * 512,
            Data(&[cookie as u8; 512]),
        );
    }
    server.wait("two requests", |state| state.held == 2);
    server.with(|state| state.hold = false);
    let mut cookies: Vec<u64> = (0..100).map(|_| client.reply(512).cookie).collect();
    cookies.sort();
    assert_eq!(cookies, (0..100).collect::<Vec<u64>>());
    for _ in 0..100 {
        assert_eq!(other.reply(0).error, 0);
    }
    assert_eq!(server.with(|state| state.deepest), 2);
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let server = Server::unix(Setup::default());
    let mut client = Client::structured(&server.place);
    let mut writer = client.writer();
    let bad: Vec<u8> = (0..40_000)
        .flat_map(|cookie| request(99, 0, cookie, 0, 0))
        .collect();
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || writer.write_all(&bad).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        assert!(!writing.is_finished(), "the server reads on and on");
        assert_serves(&server);
        for cookie in 0..40_000 {
            let reply = client.reply(0);
            assert_eq!((reply.cookie, reply.error), (cookie, EINVAL));
        }
    });
}

#[test]
fn a_stalled_client_does_not_keep_the_buffers_from_others() {
    for server in both(Setup {
        depth: 16,
        stall_timeout: Duration::from_millis(200),
        ..Setup::default()
    }) {
        // Alone, it may stall as long as it likes.
        let mut reader = Client::simple(&server.place);
        reader.send(CMD_READ, 0, 1, 0, Length(16 * MAX_DATA));
        server.wait("all parts", |state| state.log.len() == 16);
        std::thread::sleep(Duration::from_millis(500));
        server.wait("the reader alone", |state| state.connections == 1);
        assert_serves(&server);
        assert!(reader.is_hung_up(16 << 20));

        let mut writer = Client::simple(&server.place);
        writer.write(&request(CMD_WRITE, 0, 1, 0, MAX_DATA));
        writer.write(&[1; 100_000]);
        let mut other = Client::simple(&server.place);
        other.call(CMD_READ, 0, 0, Length(16 * MAX_DATA), 0);
        assert!(writer.is_hung_up(0));
    }
}

#[test]
fn noise_at_every_stage_harms_nobody() {
    let server = Server::unix(Setup::default());
    let mut witness = Client::simple(&server.place);
    let mut state = 1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300u64 {
        let client = match round % 4 {
            0 => Client::connect(&server.place),
            1 => Client::greeted(&server.place),
            2 => Client::simple(&server.place),
            _ => Client::structured(&server.place),
        };
        let mut bytes = Vec::new();
        for _ in 0..random() % 40 {
            // Valid frames with noise in their fields.
            let (command, flags) = (random() % 9, random() % 16);
            let length = random() % 3 * 512;
            let offset = random() % 1000 * 512;
            bytes.extend(request(
                command as u16,
                flags as u16,
                round,
                offset,
                length as u32,
            ));
        }
        if round % 3 == 0 && !bytes.is_empty() {
            let at = random() as usize % bytes.len();
            bytes[at] ^= 1 << (random() % 8);
        }
        // The server may hang up before it has everything.
        let _ = client.writer().write_all(&bytes);
        witness.call(CMD_READ, 0, 0, Length(512), 0);
    }
    server.wait("end of the connections", |state| state.connections == 1);
}

#[test]
fn goodbye_waits_for_the_answers() {
    let server = Server::tcp(Setup::default());
    server.with(|state| state.hold = true);
    let mut client = Client::simple(&server.place);
    client.send(CMD_READ, 0, 1, 0, Length(2 * MAX_DATA));
    client.send(CMD_DISC, 0, 2, 0, Length(0));
    server.wait("two parts", |state| state.held == 2);
    server.with(|state| state.hold = false);
    assert_eq!(client.reply(2 * MAX_DATA as usize).cookie, 1);
    assert!(client.is_hung_up(0));
}

#[test]
fn too_many_connections_are_told_so() {
    let server = Server::unix(Setup::default());
    let mut clients: Vec<Client> = (0..MAX_CONNECTIONS)
        .map(|_| Client::simple(&server.place))
        .collect();
    let mut late = Client::greeted(&server.place);
    let answers = late.option(OPT_GO, GO);
    assert_eq!(answers[0].0, REP_ERR_POLICY);
    assert!(String::from_utf8_lossy(&answers[0].1).contains("16"));
    // The others wait in the kernel, and get their turn when somebody leaves.
    let waiting: Vec<Client> = (0..8).map(|_| Client::connect(&server.place)).collect();
    for client in &mut clients {
        client.call(CMD_READ, 0, 0, Length(512), 0);
    }
    drop((late, waiting));
    drop(clients);
    server.wait("end of the connections", |state| state.connections == 0);
    assert_serves(&server);
}

#[test]
fn stop_answers_what_is_in_flight() {
    for server in both(Setup {
        depth: 3,
        ..Setup::default()
    }) {
        server.with(|state| state.hold = true);
        let mut idle = Client::simple(&server.place);
        let mut young = Client::greeted(&server.place);
        let mut busy = Client::simple(&server.place);
        busy.send(CMD_READ, 0, 1, 0, Length(MAX_DATA));
        busy.send(CMD_TRIM, CMD_FLAG_FUA, 2, 0, Length(512));
        let mut half = Client::simple(&server.place);
        half.write(&request(CMD_WRITE, 0, 3, 0, MAX_DATA));
        half.write(&[1; 200_000]);
        server.wait("requests", |state| {
            state.held == 2 && state.connections == 4
        });
        server.begin_stop();
        assert!(idle.is_hung_up(0));
        assert!(young.is_hung_up(0));
        assert!(half.is_hung_up(0));
        assert!(!server.has_ended(), "the engine has two requests");
        server.with(|state| {
            state.hold = false;
            state.fail = Some(IoFailure::NotPrimary);
        });
        for _ in 0..2 {
            assert_eq!(busy.reply(MAX_DATA as usize).error, ESHUTDOWN);
        }
        assert!(busy.is_hung_up(0));
        server.finish();
    }
}

#[test]
fn stop_does_not_wait_for_clients_that_do_not_read() {
    let server = Server::unix(Setup::default());
    let mut client = Client::simple(&server.place);
    client.send(CMD_READ, 0, 1, 0, Length(MAX_REQUEST));
    server.wait("all parts", |state| state.log.len() == 32);
    let start = Instant::now();
    server.finish();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn stop_waits_for_orphans() {
    let server = Server::unix(Setup::default());
    server.with(|state| state.hold = true);
    let mut client = Client::simple(&server.place);
    client.send(CMD_READ, 0, 1, 0, Length(512));
    server.wait("a request", |state| state.held == 1);
    drop(client);
    server.begin_stop();
    server.wait("end of the connection", |state| state.connections == 0);
    std::thread::sleep(Duration::from_millis(50));
    assert!(!server.has_ended(), "the engine has a request");
    server.with(|state| state.hold = false);
    server.finish();
}

#[test]
fn half_closed_and_idle_ends_are_clean() {
    let server = Server::tcp(Setup::default());
    let mut client = Client::simple(&server.place);
    client.close_write();
    assert!(client.is_hung_up(0));
    // A server that nobody ever spoke to stops at once.
    Server::tcp(Setup::default()).finish();
    assert_serves(&server);
}

#[test]
fn small_requests_touch_little_memory() {
    let server = Server::unix(Setup::default());
    let mut client = Client::simple(&server.place);
    for round in 0..200u64 {
        for cookie in 0..32 {
            let offset = (round * 32 + cookie) * 4096;
            client.send(CMD_WRITE, 0, cookie, offset, Data(&[1; 4096]));
        }
        for _ in 0..32 {
            assert_eq!(client.reply(0).error, 0);
        }
    }
    drop(client);
    let resident = server.finish().resident;
    assert!(resident > 0 && resident <= 32 * 4096, "{resident} bytes");
}
