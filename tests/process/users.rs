//! A volume that somebody uses is not taken away, unless by force.

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::nbd::Nbd;
use crate::node::{Ran, wait_until};
use crate::pair::{Front, Pair, Plan, role, runs, status, synced};

/// How long clients that are about to leave are waited for.
const GRACE: Duration = Duration::from_secs(2);

/// Name and number of this process, as a refusal has them.
fn me() -> String {
    let comm = std::fs::read_to_string("/proc/self/comm").expect("a name");
    format!("{} ({})", comm.trim(), std::process::id())
}

fn took(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

#[test]
fn a_client_keeps_the_role_until_it_leaves() {
    let mut pair = Pair::in_sync(Plan::default());
    let mut nbd = pair.nbd("alpha");
    nbd.write(0, &[7; 8192]).expect("writes");
    for verb in ["secondary", "down"] {
        let took = took(|| {
            let refused = pair.alpha.run(&[verb, "r0"]).failed(3, &me());
            assert!(refused.err.contains("alpha.nbd"), "{refused:?}");
            assert!(refused.err.contains("secondary --force r0"), "{refused:?}");
        });
        assert!(took >= GRACE && took < 4 * GRACE, "{took:?}");
        assert_eq!(role(&pair.alpha), "Primary");
        nbd.write(4096, &[8; 4096]).expect("goes on");
    }
    // So does the agent, which leaves the data plane alone then.
    let plane = pair.alpha.plane("r0");
    assert_eq!(pair.alpha.end_agent("TERM").code(), Some(3));
    assert!(pair.alpha.log().contains(&me()), "{}", pair.alpha.log());
    nbd.write(8192, &[9; 4096]).expect("goes on");
    pair.alpha.start_agent();
    assert_eq!(pair.alpha.plane("r0"), plane);
    assert_eq!(role(&pair.alpha), "Primary");
    // Somebody who only looks, and chooses no export, uses nothing.
    let looking = UnixStream::connect(pair.socket("alpha")).expect("connects");
    let left = std::thread::spawn(move || {
        std::thread::sleep(GRACE / 4);
        drop(nbd);
    });
    let took = took(|| drop(pair.alpha.run(&["secondary", "r0"]).ok()));
    assert!(took < GRACE, "{took:?}: not as soon as it has left");
    left.join().expect("ends");
    drop(looking);
    pair.beta.run(&["primary", "r0"]).ok();
    let mut nbd = pair.nbd("beta");
    let held = nbd.read(0, 12288).expect("reads");
    assert_eq!(held, [[7; 4096], [8; 4096], [9; 4096]].concat());
    drop(nbd);
    for node in [&mut pair.alpha, &mut pair.beta] {
        node.run(&["down", "r0"]).ok();
        assert_eq!(node.end_agent("TERM").code(), Some(0));
    }
}

#[test]
fn force_cuts_clients_off() {
    let pair = Pair::in_sync(Plan::default());
    let mut clients = [pair.nbd("alpha"), pair.nbd("alpha")];
    for (client, at) in clients.iter_mut().zip([0, 4096]) {
        client.write(at, &[7; 4096]).expect("writes");
    }
    pair.alpha.run(&["secondary", "r0", "--force"]).ok();
    assert_eq!(role(&pair.alpha), "Secondary");
    for mut client in clients {
        client.write(0, &[8; 4096]).expect_err("is cut off");
    }
    pair.beta.run(&["primary", "r0"]).ok();
    let read = pair.nbd("beta").read(0, 8192).expect("reads");
    assert_eq!(read, [7; 8192]);
    synced(&pair.beta);
    pair.assert_identical();
    // What is not there is no reason to fail.
    pair.alpha.run(&["secondary", "r0", "--force"]).ok();
    assert_eq!(pair.alpha.run(&["down", "r0", "--force"]).code, 2);
}

#[test]
fn clients_of_the_network_are_named_by_their_address() {
    let pair = Pair::in_sync(Plan {
        front: Front::Tcp,
        ..Plan::default()
    });
    let mut client = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 4k", "-c", "sleep 60000"])
        .arg(pair.uri("alpha"))
        .spawn()
        .expect("qemu-io can be run; it is in the package qemu-utils");
    wait_until("the client writes", || {
        status(&pair.alpha)["devices"][0]["written"].as_u64() >= Some(4)
    });
    let refused = pair.alpha.run(&["secondary", "r0"]).failed(3, "in use");
    assert!(refused.err.contains("by 127."), "{refused:?}");
    client.kill().expect("ends");
    client.wait().expect("ends");
    pair.alpha.run(&["secondary", "r0"]).ok();
}

/// Clients come and go while the role is given up again and again: either a client is in time and
/// the role stays, or it is turned away. None is ever served and then cut.
#[test]
fn no_client_slips_in_while_the_role_is_given_up() {
    let pair = Pair::in_sync(Plan::default());
    let socket = pair.socket("alpha");
    let stop = AtomicBool::new(false);
    let client = || {
        let mut served = 0_u64;
        while !stop.load(Ordering::Acquire) {
            let Ok(mut nbd) = Nbd::connect(&socket) else {
                continue;
            };
            nbd.write(0, &[1; 4096])
                .expect("whoever is let in is served");
            served += 1;
        }
        served
    };
    std::thread::scope(|scope| {
        let clients = [(); 2].map(|()| scope.spawn(client));
        let mut gave_up = 0;
        while gave_up < runs(20) {
            let Ran { code, err, .. } = pair.alpha.run(&["secondary", "r0"]);
            assert!(code == 0 || (code == 3 && err.contains("in use")), "{err}");
            gave_up += usize::from(code == 0);
            pair.alpha.run(&["primary", "r0"]).ok();
        }
        stop.store(true, Ordering::Release);
        let served = clients.map(|client| client.join().expect("its own checks"));
        println!("the role was given up {gave_up} times; clients served: {served:?}");
        assert!(served.iter().all(|count| *count > 0));
    });
}

/// One client of one volume keeps the role of the resource.
#[test]
fn every_volume_counts() {
    let pair = Pair::in_sync(Plan {
        volumes: 2,
        ..Plan::default()
    });
    let nbd = pair.nbd_of("alpha", 1);
    let refused = pair.alpha.run(&["secondary", "r0"]).failed(3, "in use");
    assert!(refused.err.contains("alpha-1.nbd"), "{refused:?}");
    assert!(!refused.err.contains("alpha.nbd"), "{refused:?}");
    pair.nbd("alpha").write(0, &[1; 512]).expect("is served");
    drop(nbd);
    pair.alpha.run(&["secondary", "r0"]).ok();
}
