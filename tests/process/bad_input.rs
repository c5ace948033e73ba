//! What a running node must bear: broken metadata, peers that are none, paths and ports that do
//! not work. Each time a reason is shown, nothing is written and the process goes on.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use lockstep_transport::hello::{Direction, Handshake, HelloConfig, Progress, Secret};
use lockstep_transport::wire::{HEADER_LEN, Kind, MAGIC, VERSION};
use rustix::net::{AddressFamily, SocketType};
use serde_json::Value;

use crate::node::wait_until;
use crate::pair::{
    Pair, Plan, connected, disk_state, link_state, noise, role, status, synced, wait_status,
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
/// Where the superblock and its copy lie, from the end of the device.
const SUPERBLOCK: u64 = 4096;
const COPY: u64 = 36 * 1024;

fn device_reason(now: &Value) -> String {
    now["devices"][0]["reason"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

fn link_reason(now: &Value) -> String {
    now["connections"][0]["reason"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

// ---- metadata ----

/// A pair that was in sync and is down, in order, with data on both disks.
fn at_rest() -> Pair {
    let mut pair = Pair::in_sync(Plan::default());
    pair.nbd("alpha")
        .write(0, &noise(MIB as usize, 1))
        .expect("writes");
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.run(&["down", "r0"]).ok();
        assert_eq!(node.end_agent("TERM").code(), Some(0));
    }
    pair
}

/// What is done to alpha's disk.
type Ruin = fn(&Pair);

/// Overwrites bytes of alpha's disk, `from_end` before its end.
fn scribble(pair: &Pair, from_end: u64, bytes: &[u8]) {
    let disk = File::options()
        .write(true)
        .open(pair.disk("alpha"))
        .expect("opens");
    disk.write_all_at(bytes, pair.plan.size - from_end)
        .expect("writes");
}

#[test]
fn one_broken_superblock_copy_is_borne() {
    for from_end in [SUPERBLOCK, COPY] {
        let mut pair = at_rest();
        scribble(&pair, from_end, &noise(4096, 2));
        pair.beta.start_agent();
        pair.alpha.start_agent();
        connected(&pair.alpha);
        synced(&pair.alpha);
        pair.alpha.run(&["primary", "r0"]).ok();
        let found = pair.nbd("alpha").read(0, MIB as usize).expect("reads");
        assert!(found == noise(MIB as usize, 1), "copy at -{from_end}");
        pair.assert_identical();
    }
}

#[test]
fn metadata_that_cannot_be_trusted_is_refused_and_left_alone() {
    // What is done, and a word of the advice.
    let ruined: [(&str, &str, Ruin); 5] = [
        ("both copies are noise", "create-md", |pair| {
            scribble(pair, SUPERBLOCK, &noise(4096, 3));
            scribble(pair, COPY, &noise(4096, 4));
        }),
        ("both copies are gone", "create-md", |pair| {
            scribble(pair, COPY, &[0; 36 * 1024])
        }),
        ("a bit is flipped in both", "create-md --force", |pair| {
            let disk = std::fs::read(pair.disk("alpha")).expect("reads");
            for from_end in [SUPERBLOCK, COPY] {
                let at = (pair.plan.size - from_end) as usize;
                let mut block = disk[at..at + 4096].to_vec();
                block[700] ^= 1;
                scribble(pair, from_end, &block);
            }
        }),
        ("the file is cut short", "old size", |pair| {
            let disk = File::options()
                .write(true)
                .open(pair.disk("alpha"))
                .expect("opens");
            disk.set_len(pair.plan.size - 8 * MIB).expect("truncates");
        }),
        ("it belongs to the other node", "node-id 1;", |pair| {
            std::fs::copy(pair.disk("beta"), pair.disk("alpha")).expect("copies");
        }),
    ];
    for (what, advice, ruin) in ruined {
        let mut pair = at_rest();
        ruin(&pair);
        let before = std::fs::read(pair.disk("alpha")).expect("reads");
        pair.beta.start_agent();
        pair.alpha.start_agent();
        wait_status(&pair.alpha, what, SOON, |now| {
            disk_state(now) == "Diskless" && !device_reason(now).is_empty()
        });
        println!("{what}: {}", device_reason(&status(&pair.alpha)));
        let refused = pair.alpha.run(&["attach", "r0"]);
        assert_eq!(refused.code, 3, "{what}: {refused:?}");
        let (_, help) = refused.err.split_once("\nhelp: ").expect("help");
        assert!(help.contains(advice), "{what}: {refused:?}");
        assert!(
            before == std::fs::read(pair.disk("alpha")).expect("reads"),
            "{what}: something was written"
        );
        // Diskless, it can still be a client of its peer's disk.
        connected(&pair.alpha);
        assert_eq!(role(&pair.beta), "Secondary");
    }
}

#[test]
fn broken_bitmap_and_log_mean_more_work_not_wrong_data() {
    let mut pair = at_rest();
    // Bitmap and activity log, everything between data and the superblock but the second copy.
    scribble(&pair, COPY - 4096, &noise(28 * 1024, 5));
    scribble(&pair, COPY + 4096, &noise(4096, 6));
    pair.beta.start_agent();
    pair.alpha.start_agent();
    connected(&pair.alpha);
    synced(&pair.alpha);
    pair.alpha.run(&["primary", "r0"]).ok();
    let found = pair.nbd("alpha").read(0, MIB as usize).expect("reads");
    assert!(found == noise(MIB as usize, 1));
    pair.assert_identical();
}

// ---- peers ----

const SECRET: &str = "a secret of the test";

/// What a false peer says about itself.
#[derive(Clone, Copy)]
struct Mask {
    resource: &'static str,
    node: u8,
    peer: u8,
    secret: &'static str,
}

const TRUE: Mask = Mask {
    resource: "r0",
    node: 0,
    peer: 1,
    secret: SECRET,
};

impl Mask {
    fn handshake(self, direction: Direction) -> Handshake {
        Handshake::new(HelloConfig {
            direction,
            resource: self.resource.to_owned(),
            node: self.node,
            peer: self.peer,
            secret: Secret::new(self.secret.as_bytes()),
            features: 0,
            nonce: [7; 32],
        })
        .expect("valid")
    }
}

fn addresses(pair: &Pair) -> [SocketAddr; 2] {
    let texts = pair.plan.addresses.as_ref().expect("set");
    texts
        .each_ref()
        .map(|text| text.parse().expect("an address"))
}

/// Connects from alpha's address to beta's, as alpha would.
fn dial(pair: &Pair) -> TcpStream {
    let [mut from, to] = addresses(pair);
    from.set_port(0);
    let socket =
        rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("socket");
    rustix::net::bind(&socket, &from).expect("binds");
    wait_until("beta listens", || {
        rustix::net::connect(&socket, &to).is_ok()
    });
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).expect("a limit");
    stream
}

/// Runs the handshake as far as it goes; whether it succeeded.
fn greet(stream: &mut TcpStream, mut handshake: Handshake) -> bool {
    loop {
        if stream.write_all(&handshake.output()).is_err() {
            return false;
        }
        let mut bytes = vec![0; handshake.wants()];
        let Ok(count @ 1..) = stream.read(&mut bytes) else {
            return false;
        };
        match handshake.input(&bytes[..count]) {
            Ok(Progress::More) => {}
            Ok(Progress::Done(_)) => return stream.write_all(&handshake.output()).is_ok(),
            Err(_) => return false,
        }
    }
}

/// Reads until the other side hangs up; it must, in bounded time.
fn is_hung_up(stream: &mut TcpStream) -> bool {
    let mut sink = Vec::new();
    match stream.take(64 << 20).read_to_end(&mut sink) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// A message of the handshake with a right checksum.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"LKHS".to_vec();
    bytes.extend([kind, 0]);
    bytes.extend((body.len() as u16).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes);
    hasher.update(body);
    bytes.extend(hasher.finalize().to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A true hello, but of versions 40 to 41.
fn hello_of_another_version() -> Vec<u8> {
    let hello = TRUE.handshake(Direction::Dialer).output();
    let mut body = hello[12..].to_vec();
    body[..4].copy_from_slice(&[40, 0, 41, 0]);
    message(1, &body)
}

/// A frame header with a right checksum.
fn frame(kind: u16, version: u16, payload_len: u32) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[4..6].copy_from_slice(&version.to_le_bytes());
    bytes[6..8].copy_from_slice(&kind.to_le_bytes());
    bytes[40..48].copy_from_slice(&1_u64.to_le_bytes());
    bytes[72..76].copy_from_slice(&payload_len.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..HEADER_LEN - 4]);
    bytes[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn false_peers_are_turned_away() {
    let mut pair = Pair::in_sync(Plan::default());
    pair.nbd("alpha")
        .write(0, &noise(MIB as usize, 7))
        .expect("writes");
    pair.alpha.run(&["secondary", "r0"]).ok();
    pair.alpha.run(&["down", "r0"]).ok();
    pair.alpha.end_agent("TERM");
    let plane = pair.beta.plane("r0");
    let data = || {
        let mut bytes = vec![0; 60 << 20];
        let disk = File::open(pair.disk("beta")).expect("opens");
        disk.read_exact_at(&mut bytes, 0).expect("reads");
        bytes
    };
    let before = data();
    // Wrong from the start: refused in the handshake, with the reason in the status.
    let masks = [
        (
            "resource",
            Mask {
                resource: "r1",
                ..TRUE
            },
        ),
        ("node id", Mask { node: 2, ..TRUE }),
        ("node id", Mask { peer: 3, ..TRUE }),
        (
            "secret",
            Mask {
                secret: "a guess",
                ..TRUE
            },
        ),
        ("secret", Mask { secret: "", ..TRUE }),
    ];
    for (reason, mask) in masks {
        let mut stream = dial(&pair);
        assert!(
            !greet(&mut stream, mask.handshake(Direction::Dialer)),
            "{reason}"
        );
        assert!(is_hung_up(&mut stream), "{reason}");
        wait_status(&pair.beta, reason, SOON, |now| {
            link_reason(now).contains(reason)
        });
    }
    let openings: [(&str, Vec<u8>); 5] = [
        ("version", hello_of_another_version()),
        ("malformed", noise(4096, 8)),
        ("malformed", message(1, &[0xff; 300])),
        ("malformed", message(3, &[0])),
        (
            "malformed",
            [&b"LKHS\x01\x00\xff\xff"[..], &[0; 70_000]].concat(),
        ),
    ];
    for (reason, opening) in openings {
        let mut stream = dial(&pair);
        // It may hang up before it has taken everything.
        let _ = stream.write_all(&opening);
        assert!(is_hung_up(&mut stream), "{reason}");
        wait_status(&pair.beta, reason, SOON, |now| {
            link_reason(now).contains(reason)
        });
    }
    // Nothing at all, and half a hello: given up in time.
    let mut silent = dial(&pair);
    assert!(is_hung_up(&mut silent));
    let mut halves = dial(&pair);
    halves
        .write_all(&TRUE.handshake(Direction::Dialer).output()[..20])
        .expect("writes");
    halves.shutdown(Shutdown::Write).expect("shuts");
    assert!(is_hung_up(&mut halves));
    // With the secret, but no frames.
    let frames = [
        noise(100_000, 9),
        vec![0; 100_000],
        frame(9999, VERSION, 0),
        frame(Kind::State as u16, VERSION + 7, 0),
        frame(Kind::State as u16, VERSION, u32::MAX),
        [
            frame(Kind::State as u16, VERSION, 60_000),
            noise(60_000, 10),
        ]
        .concat(),
        [frame(Kind::Write as u16, VERSION, 4096), vec![1; 4096]].concat(),
        frame(Kind::SyncDone as u16, VERSION, 0),
        frame(Kind::Promote as u16, VERSION, 0),
    ];
    for (number, bytes) in frames.iter().enumerate() {
        let mut stream = dial(&pair);
        assert!(
            greet(&mut stream, TRUE.handshake(Direction::Dialer)),
            "{number}"
        );
        let _ = stream.write_all(bytes);
        assert!(is_hung_up(&mut stream), "frame {number}");
        wait_status(&pair.beta, "no link", SOON, |now| {
            link_state(now) != "Connected"
        });
    }
    assert_eq!(pair.beta.plane("r0"), plane, "it never died");
    assert!(before == data(), "something was written");
    // And the true peer is welcome.
    pair.alpha.start_agent();
    connected(&pair.alpha);
    synced(&pair.alpha);
    pair.assert_identical();
}

#[test]
fn a_false_listener_gets_nothing_and_stops_nothing() {
    let mut pair = Pair::in_sync(Plan::default());
    pair.beta.run(&["down", "r0"]).ok();
    pair.beta.end_agent("TERM");
    let plane = pair.alpha.plane("r0");
    let [_, place] = addresses(&pair);
    let listener = TcpListener::bind(place).expect("binds");
    let mut nbd = pair.nbd("alpha");
    let answers: [&[u8]; 4] = [
        b"",
        b"SSH-2.0-nonsense\r\n",
        &[0xff; 4096],
        &message(3, &[4]),
    ];
    for (number, answer) in answers.iter().enumerate() {
        let (mut stream, _) = listener.accept().expect("is dialed");
        let _ = stream.write_all(answer);
        nbd.write(4096 * number as u64, &[number as u8; 4096])
            .expect("writes go on");
        // The next one comes without the end of this one: silence is bounded.
        if number == 0 {
            assert!(is_hung_up(&mut stream));
        }
    }
    let (mut stream, _) = listener.accept().expect("is dialed");
    let false_secret = Mask {
        node: 1,
        peer: 0,
        secret: "a guess",
        ..TRUE
    };
    assert!(!greet(
        &mut stream,
        false_secret.handshake(Direction::Listener)
    ));
    drop((stream, listener));
    assert_eq!(pair.alpha.plane("r0"), plane, "it never died");
    pair.beta.start_agent();
    connected(&pair.alpha);
    synced(&pair.alpha);
    pair.assert_identical();
}

#[test]
fn another_secret_in_the_configuration_is_named_on_both_sides() {
    let mut pair = Pair::files(Plan::default());
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.run(&["create-md", "r0"]).ok();
    }
    pair.alpha.start_agent();
    let other = pair.configuration().replace(SECRET, "another one");
    pair.beta.config = pair.dir.path().join("other.conf");
    std::fs::write(&pair.beta.config, other).expect("config");
    pair.beta.start_agent();
    for node in [&pair.alpha, &pair.beta] {
        wait_status(node, "the secret is named", SOON, |now| {
            link_reason(now).contains("secret")
        });
    }
    pair.alpha
        .run(&["wait-connect", "r0", "--timeout", "1"])
        .failed(4, "not connected");
}

// ---- sockets, paths and ports ----

#[test]
fn a_data_plane_bears_nonsense_on_its_socket() {
    let pair = Pair::in_sync(Plan::default());
    let plane = pair.alpha.plane("r0");
    let path = pair.alpha.run_dir.join("r0.serve.sock");
    let endless = vec![b'x'; 300_000];
    let nested = "[".repeat(60_000) + "\n";
    let lines: [&[u8]; 7] = [
        b"\n",
        b"garbage\n",
        b"{\"verb\":7}\n",
        b"\xff\xfe\x00\n",
        b"{\"attach\":{\"volume\":0}}\n",
        nested.as_bytes(),
        &endless,
    ];
    for line in lines {
        let mut stream = UnixStream::connect(&path).expect("connects");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
        // It may close before it has taken everything.
        let _ = stream.write_all(line);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        // An answer, or a closed connection; not silence.
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        }
    }
    assert_eq!(role(&pair.alpha), "Primary");
    assert_eq!(pair.alpha.plane("r0"), plane, "it never died");
    pair.nbd("alpha").write(0, &[1; 512]).expect("writes");
}

#[test]
fn clashes_are_found_in_the_file_and_on_the_machine() {
    let mut pair = Pair::files(Plan::default());
    // Two resources at one address, or on one disk, or behind one socket.
    let first = pair.configuration();
    let second = first.replace("resource r0", "resource r1");
    std::fs::write(pair.dir.path().join("clash.conf"), first.clone() + &second).expect("config");
    let good = pair.alpha.config.clone();
    pair.alpha.config = pair.dir.path().join("clash.conf");
    for verb in [&["check"][..], &["agent"]] {
        pair.alpha.run(verb).failed(10, "clash.conf:");
    }
    assert!(!pair.alpha.run_dir.exists(), "nothing is written");
    pair.alpha.config = good;
    // A port that another program has: named, tried again, and taken when it is free.
    let [_, place] = addresses(&pair);
    let squatter = TcpListener::bind(place).expect("binds");
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.run(&["create-md", "r0"]).ok();
    }
    pair.beta.start_agent();
    wait_status(&pair.beta, "the port is named", SOON, |now| {
        link_reason(now).contains("cannot listen") && link_reason(now).contains(":7789")
    });
    drop(squatter);
    pair.alpha.start_agent();
    connected(&pair.alpha);
}

#[test]
fn an_nbd_socket_path_that_is_too_long_is_named() {
    let mut pair = Pair::files(Plan::default());
    let deep = pair.dir.path().join("x".repeat(120));
    std::fs::create_dir(&deep).expect("dir");
    let long = pair.configuration().replace(
        pair.socket("alpha").to_str().expect("UTF-8"),
        deep.join("n").to_str().expect("UTF-8"),
    );
    std::fs::write(&pair.alpha.config, long).expect("config");
    let checked = pair.alpha.run(&["check"]);
    if checked.code != 0 {
        checked.failed(10, "socket");
        return;
    }
    pair.alpha.run(&["create-md", "r0"]).ok();
    pair.alpha.start_agent();
    let refused = pair.alpha.run(&["primary", "r0", "--force"]);
    assert_ne!(refused.code, 0, "the device is not there: {refused:?}");
    assert!(
        refused.err.contains("socket") && refused.err.contains("help: "),
        "{refused:?}"
    );
}

#[test]
fn without_a_ublk_driver_everything_but_the_device_works() {
    if std::path::Path::new("/dev/ublk-control").exists() {
        return;
    }
    let mut pair = Pair::files(Plan::default());
    let nbd = pair.uri("alpha");
    let text = pair.configuration();
    assert!(text.contains(&nbd), "{text}");
    pair.alpha.config = pair.dir.path().join("ublk.conf");
    std::fs::write(&pair.alpha.config, text.replace(&nbd, "/dev/ublkb97")).expect("config");
    pair.alpha.run(&["create-md", "r0"]).ok();
    // Twice: the second agent finds the records of the first.
    for _ in 0..2 {
        pair.alpha.start_agent();
        wait_status(&pair.alpha, "the disk is there", SOON, |now| {
            disk_state(now) == "Inconsistent"
        });
        let refused = pair.alpha.run(&["primary", "r0", "--force"]);
        let refused = refused.failed(1, "modprobe ublk_drv");
        assert!(refused.err.contains("nbd+unix"), "{refused:?}");
        assert_eq!(role(&pair.alpha), "Secondary");
        pair.alpha.run(&["down", "r0"]).ok();
        pair.alpha.run(&["up", "r0"]).ok();
        assert_eq!(pair.alpha.end_agent("TERM").code(), Some(0));
    }
}

#[test]
fn what_the_target_does_not_name_is_left_out_and_what_is_not_there_is_refused() {
    let pair = Pair::started(Plan {
        volumes: 2,
        ..Plan::default()
    });
    connected(&pair.alpha);
    let states = |target: &str| pair.alpha.run(&["dstate", target]).ok();
    assert_eq!(states("r0").lines().count(), 2);
    assert_eq!(states("r0/1").lines().count(), 1);
    let shown = pair.alpha.run(&["status", "r0/1", "--json"]).ok();
    let shown: Value = serde_json::from_str(&shown).expect("json");
    let peers = &shown[0]["connections"][0]["peer_devices"];
    for volumes in [&shown[0]["devices"], peers] {
        assert_eq!(volumes.as_array().map(Vec::len), Some(1), "{shown}");
        assert_eq!(volumes[0]["volume"], 1, "{shown}");
    }
    for verb in ["status", "dstate", "role", "wait-connect", "attach"] {
        pair.alpha.run(&[verb, "r0/2"]).failed(2, "no volume 2");
    }
    for (verb, target, reason) in [
        ("adjust", "r9", "no resource 'r9'"),
        ("adjust", "r0/1", "whole resource"),
        ("dump", "r0/1", "whole resource"),
        ("dump", "r0:beta", "not a connection"),
        ("dump-md", "r0:beta", "not a connection"),
        ("create-md", "r0:beta", "not a connection"),
    ] {
        pair.alpha.run(&[verb, target]).failed(2, reason);
    }
}

#[test]
fn orders_to_a_resource_that_is_down_change_nothing() {
    let pair = Pair::started(Plan::default());
    for _ in 0..2 {
        for verb in ["down", "disconnect", "detach", "secondary"] {
            pair.alpha.run(&[verb, "r0"]).ok();
        }
    }
    pair.alpha.run(&["connect", "r0"]).failed(3, "lockstep up");
    pair.alpha.run(&["up", "r0"]).ok();
    connected(&pair.alpha);
}

#[test]
fn a_missing_or_unfit_disk_is_named() {
    let mut pair = Pair::files(Plan::default());
    let disk = pair.disk("alpha");
    std::fs::remove_file(&disk).expect("removes");
    pair.alpha.run(&["create-md", "r0"]).failed(1, "alpha.img");
    std::fs::create_dir(&disk).expect("dir");
    pair.alpha
        .run(&["create-md", "r0"])
        .failed(3, "neither a block device nor a regular file");
    std::fs::remove_dir(&disk).expect("removes");
    // tmpfs knows no direct I/O on older kernels; /dev/null is no disk on any.
    std::os::unix::fs::symlink("/dev/null", &disk).expect("links");
    pair.alpha.run(&["create-md", "r0"]).failed(3, "neither");
    pair.alpha.start_agent();
    wait_status(&pair.alpha, "the disk is named", SOON, |now| {
        disk_state(now) == "Diskless" && device_reason(now).contains("alpha.img")
    });
    pair.alpha.run(&["attach", "r0"]).failed(3, "neither");
}

#[test]
fn a_peer_that_is_too_small_for_the_data_is_refused() {
    let small = Pair::files(Plan::default());
    let path = small.dir.path().join("small.img");
    File::create(&path)
        .expect("creates")
        .set_len(32 * MIB)
        .expect("size");
    let mut pair = Pair::files(Plan {
        files: [("beta.img", path)].into(),
        ..Plan::default()
    });
    for node in [&pair.alpha, &pair.beta] {
        node.run(&["create-md", "r0"]).ok();
    }
    // Alpha alone makes its size the size of the data; had the two met before, they would have
    // agreed on the smaller one.
    pair.alpha.start_agent();
    pair.alpha.run(&["primary", "r0", "--force"]).ok();
    pair.nbd("alpha")
        .write(50 * MIB, &[1; 4096])
        .expect("writes");
    let before = std::fs::read(pair.disk("beta")).expect("reads");
    pair.beta.start_agent();
    wait_status(&pair.alpha, "the sizes are named", SOON, |now| {
        link_state(now) != "Connected" && link_reason(now).contains("bytes")
    });
    let after = std::fs::read(pair.disk("beta")).expect("reads");
    let data = 31 << 20;
    assert!(before[..data] == after[..data], "nothing is written");
    pair.nbd("alpha")
        .write(50 * MIB, &[2; 4096])
        .expect("writes go on");
}
