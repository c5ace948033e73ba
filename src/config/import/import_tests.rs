//! Importers: what comes out, what is asked for, what is told, what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::{
    Arbiter, Config, Control, Failback, Notify, Resource, Service, Spanned, Step, Witness,
};
use super::*;

const FIXTURES: &str = "tests/config/import";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(FIXTURES)
        .join(name)
}

fn witness() -> Option<Arbiter> {
    Some(Arbiter::Witness(Witness {
        name: Spanned::new("third".to_owned(), Default::default()),
        address: Spanned::new("192.0.2.30:7795".parse().unwrap(), Default::default()),
    }))
}

fn addresses(pairs: &[(&str, &str)]) -> Vec<(String, SocketAddr)> {
    let parsed = |(node, address): &(&str, &str)| ((*node).to_owned(), address.parse().unwrap());
    pairs.iter().map(parsed).collect()
}

fn disks(pairs: &[(&str, &str)]) -> Vec<(String, PathBuf)> {
    let parsed = |(node, path): &(&str, &str)| ((*node).to_owned(), PathBuf::from(path));
    pairs.iter().map(parsed).collect()
}

/// The configuration that comes out, and the notes as one text.
fn imported(request: &Request) -> (Config, String) {
    let key = Key::File(PathBuf::from("/etc/lockstep/cluster.key"));
    match import(request).map(|prepared| prepared.with_key(&key)) {
        Ok(Imported { text, notes }) => {
            let config = Config::parse_str("imported", &text).unwrap();
            assert!(config.warnings.is_empty(), "{text}");
            (config, notes.join("\n"))
        }
        Err(failure) => panic!("{failure:?}"),
    }
}

fn needs(request: &Request) -> Vec<String> {
    match import(request) {
        Err(Failure::Needs { needs, .. }) => needs,
        other => panic!("{other:?}"),
    }
}

fn refused(request: &Request) -> String {
    match import(request) {
        Err(Failure::Wrong(errors)) => {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            texts.join("\n")
        }
        other => panic!("{other:?}"),
    }
}

fn steps(resource: &Resource) -> Vec<String> {
    let failover = resource.failover.as_ref().unwrap();
    let name = |step: &Spanned<Step>| format!("{} {}", step.kind(), step.name());
    failover.steps.iter().map(name).collect()
}

fn service<'a>(resource: &'a Resource, name: &str) -> &'a Service {
    let steps = &resource.failover.as_ref().unwrap().steps;
    steps
        .iter()
        .find_map(|step| match &step.value {
            Step::Service(service) | Step::Run(service) if service.name == name => Some(service),
            _ => None,
        })
        .unwrap()
}

/// A folder of Heartbeat's files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

const RESOURCE: &str = "resource r0 { device /dev/drbd0; disk /dev/sdb1; meta-disk internal;
    on a { address 10.0.0.1:7788; } on b { address 10.0.0.2:7788; } }\n";

/// Heartbeat's files beside one resource of DRBD.
fn heartbeat(files: &[(&str, &str)]) -> (tempfile::TempDir, Request) {
    let dir = folder(files);
    let res = dir.path().join("r0.res");
    fs::write(&res, RESOURCE).unwrap();
    let request = Request {
        drbd: vec![res],
        heartbeat: Some(dir.path().to_owned()),
        vote: Some(Arbiter::Manual),
        ..Request::default()
    };
    (dir, request)
}

#[test]
fn an_nfs_pair_becomes_a_plan() {
    let mut request = Request {
        drbd: ["nfs/global_common.conf", "nfs/files.res"]
            .map(fixture)
            .to_vec(),
        heartbeat: Some(fixture("nfs")),
        ..Request::default()
    };
    assert_eq!(
        needs(&request),
        [
            "--vote witness=NAME@ADDRESS:PORT|fence=COMMAND|manual|unsafe-two-node",
            "--address first=ADDRESS:PORT",
            "--address second=ADDRESS:PORT",
        ]
    );
    request.vote = witness();
    request.addresses = addresses(&[("first", "192.0.2.1:694"), ("second", "192.0.2.2:694")]);
    let (config, notes) = imported(&request);
    let files = &config.resources[0];
    assert_eq!(
        steps(files),
        ["mount /data", "service nfs-server", "vip 192.0.2.8"]
    );
    let Control::Commands { start, stop } = &service(files, "nfs-server").control else {
        panic!("no commands");
    };
    assert!(start.contains("/data/.nfs-state/$d") && stop.contains("stop nfs-server"));
    let failover = files.failover.as_ref().unwrap();
    assert!(matches!(failover.failback, Failback::WhenStable(_)));
    assert_eq!(failover.preferred.as_ref().unwrap().value, "first");
    assert_eq!(failover.monitor.as_ref().unwrap().ping.len(), 1);
    let times = &config.cluster.heartbeat;
    assert_eq!(times.interval.as_secs(), 2);
    assert_eq!(times.lease.as_secs(), 30);
    assert_eq!(times.boot_wait.as_secs(), 120);
    assert_eq!(config.cluster.notify.len(), 1);
    for part in [
        "fence-peer",
        "wfc-timeout",
        "ha.cf:5: `deadtime 30`",
        "ha.cf:9: `mcast eth0",
        "ha.cf:10: `auto_failback on`",
        "haresources:1: `restart-nfs`: replaced",
        "haresources:1: the address comes last",
        "exports:1: an address with `*`",
        "authkeys:1: ",
    ] {
        assert!(notes.contains(part), "no {part} in\n{notes}");
    }
    assert!(!notes.contains("fsid"), "{notes}");
}

#[test]
fn mistakes_in_a_resource_are_found_at_their_lines() {
    let mut request = Request {
        drbd: vec![fixture("web/web.res")],
        heartbeat: Some(fixture("web")),
        vote: Some(Arbiter::Manual),
        ..Request::default()
    };
    let message = refused(&request);
    assert!(
        message.contains("web.res:2:5: unknown statement"),
        "{message}"
    );
    assert!(message.contains("web.res:6:49: bad address"), "{message}");
    let text = fs::read_to_string(&request.drbd[0]).unwrap();
    let text = text
        .replace("diskinternal", "disk internal")
        .replace("192.0.2.:", "192.0.2.7:");
    let dir = folder(&[("web.res", &text)]);
    request.drbd = vec![dir.path().join("web.res")];
    let (config, notes) = imported(&request);
    let web = &config.resources[0];
    assert_eq!(
        steps(web),
        ["mount /srv/www", "service httpd", "vip 192.0.2.100"]
    );
    assert_eq!(
        service(web, "httpd").control,
        Control::Unit("httpd.service".to_owned())
    );
    assert_eq!(web.net.verify_alg.as_deref(), Some("sha1"));
    // Without ha.cf, heartbeats go where the connection goes.
    let node = &config.cluster.nodes["two.example.com"];
    assert_eq!(node.paths[0].address.value.to_string(), "192.0.2.7:7794");
    assert!(matches!(&config.cluster.notify[..], [Notify::Mail { to, .. }] if to == "root"));
    assert!(notes.contains("its subject is left out"), "{notes}");
    assert!(notes.contains("/dev/ublkb1 now, not /dev/drbd1"), "{notes}");
}

#[test]
fn rsync_becomes_a_replicated_disk() {
    let mut request = Request {
        keepalived: Some(fixture("vrrp/keepalived.conf")),
        ..Request::default()
    };
    let asked = needs(&request);
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[0].starts_with("--vote ") && asked[2].starts_with("--disk NODE=PATH"));
    request.vote = witness();
    request.disks = disks(&[("left", "/dev/vdb"), ("right", "/dev/vdc")]);
    let (config, notes) = imported(&request);
    let git = &config.resources[0];
    assert_eq!(
        steps(git),
        [
            "mount /srv/git",
            "service alive",
            "run git-master",
            "vip 192.0.2.10",
            "vip 192.0.2.11"
        ]
    );
    let [left, right] = &git.hosts;
    assert_eq!(left.address.value.to_string(), "192.0.2.1:7789");
    assert_eq!(right.volumes[0].disk.value, Path::new("/dev/vdc"));
    let alive = service(git, "alive");
    assert_eq!(alive.check.as_deref(), Some("/usr/local/sbin/alive --all"));
    assert_eq!(alive.options.interval.as_secs(), 1);
    assert_eq!(git.failover.as_ref().unwrap().failback, Failback::Never);
    assert_eq!(config.cluster.notify.len(), 2);
    for part in [
        "192.0.2.1 is taken as the address of left",
        "`priority`",
        "first 8 characters",
        "`notify_stop`",
        "/srv/git was copied by rsync",
    ] {
        assert!(notes.contains(part), "no {part} in\n{notes}");
    }
    // The file is from the node that is named, or from the one with its address.
    request.node = "right".to_owned();
    let (config, _) = imported(&request);
    let [left, _] = &config.resources[0].hosts;
    assert_eq!(left.address.value.to_string(), "192.0.2.2:7789");
    request.node = String::new();
    request.addresses = addresses(&[("right", "192.0.2.1:7789"), ("left", "192.0.2.2:7789")]);
    let (config, notes) = imported(&request);
    let node = &config.cluster.nodes["left"];
    assert_eq!(node.paths[0].address.value.to_string(), "192.0.2.2:7794");
    assert!(
        notes.contains("the port chosen is that of a connection"),
        "{notes}"
    );
}

#[test]
fn drbd_alone_needs_no_choice() {
    let request = Request {
        drbd: ["nfs/global_common.conf", "nfs/files.res"]
            .map(fixture)
            .to_vec(),
        ..Request::default()
    };
    let (config, notes) = imported(&request);
    assert!(config.resources[0].failover.is_none());
    assert!(config.cluster.nodes.is_empty());
    assert_eq!(
        config.resources[0].hosts[0].volumes[0].options.resync_rate,
        Some(50 << 20)
    );
    assert!(notes.contains("`usage-count`"), "{notes}");
    // What no host could do without is no option.
    let dir = folder(&[("x.res", &RESOURCE.replace("internal", "/dev/md[3]"))]);
    let request = Request {
        drbd: vec![dir.path().join("x.res")],
        ..Request::default()
    };
    assert!(refused(&request).contains("`meta-disk /dev/md[3]` is not supported"));
}

#[test]
fn resources_of_heartbeat_in_every_spelling() {
    for (line, expected) in [
        ("a 10.0.0.9/24/eth1 drbddisk", vec!["vip 10.0.0.9"]),
        (
            "a IPaddr2::10.0.0.9/24/eth1:0/10.0.0.255 drbddisk::r0",
            vec!["vip 10.0.0.9"],
        ),
        (
            "a IPv6addr::fd00::9/64/eth1 drbddisk::r0",
            vec!["vip fd00::9"],
        ),
        (
            "b drbddisk::r0 Filesystem::/dev/drbd0::/d",
            vec!["mount /d"],
        ),
        (
            "b Filesystem::/dev/drbd/by-res/r0/0::/d::xfs",
            vec!["mount /d"],
        ),
        ("b Filesystem::/dev/drbd/0::/d::xfs", vec!["mount /d"]),
        ("a drbddisk::r0 Filesystem::/dev/sdz::/d", vec![]),
        ("a drbddisk::r0 own::x Delay::1::2", vec!["service own"]),
        ("a drbddisk::r0 nfs-kernel-server", vec![]),
    ] {
        let (_dir, request) =
            heartbeat(&[("haresources", line), ("resource.d/own", "#!/bin/sh\n")]);
        let (config, notes) = imported(&request);
        assert_eq!(steps(&config.resources[0]), expected, "{line}\n{notes}");
        if line.contains("own") {
            let Control::Commands { start, .. } = &service(&config.resources[0], "own").control
            else {
                panic!("no commands");
            };
            assert!(start.ends_with("/resource.d/own x start"), "{start}");
        }
    }
}

#[test]
fn a_node_address_comes_from_ucast_if_it_is_that_of_a_disk() {
    let conf = "node a b\nucast eth1 10.0.0.2\n";
    let line = "a drbddisk::r0 Filesystem::/dev/drbd0::/d::ext4";
    let (_dir, mut request) = heartbeat(&[("ha.cf", conf), ("haresources", line)]);
    let (config, _) = imported(&request);
    assert_eq!(
        config.cluster.nodes["a"].paths[0].address.value.to_string(),
        "10.0.0.1:7794"
    );
    let other = conf.replace("10.0.0.2", "10.9.0.2");
    let (_dir, asking) = heartbeat(&[("ha.cf", &other), ("haresources", line)]);
    assert_eq!(
        needs(&asking),
        ["--address a=ADDRESS:PORT", "--address b=ADDRESS:PORT"]
    );
    // A resource that no file describes is made, once its disks are known.
    request.drbd.clear();
    assert_eq!(needs(&request).len(), 4);
    request.addresses = addresses(&[("a", "10.0.0.1:694"), ("b", "10.0.0.2:694")]);
    request.disks = disks(&[("a", "/dev/vdb"), ("b", "/dev/vdb")]);
    let (config, notes) = imported(&request);
    assert_eq!(config.resources[0].name.value, "r0");
    assert!(notes.contains("no file of DRBD describes r0"), "{notes}");
}

#[test]
fn mistakes_of_heartbeat_are_found_at_their_lines() {
    let line = "a drbddisk::r0";
    for (conf, line, part) in [
        (
            "keepaliv 2\n",
            line,
            "ha.cf:1:1: unknown statement `keepaliv` in ha.cf",
        ),
        (
            "\ndeadtime soon\n",
            line,
            "ha.cf:2:10: `deadtime`: `soon` is not a time",
        ),
        ("deadtime\n", line, "ha.cf:1:1: `deadtime` needs a value"),
        (
            "ucast eth0\n",
            line,
            "ha.cf:1:7: `ucast`: `eth0` is not an interface and",
        ),
        ("ping x\n", line, "`x` is not an IP address"),
        (
            "auto_failback perhaps\n",
            line,
            "`perhaps` is not `on`, `off` or `legacy`",
        ),
        ("node \"a\n", line, "string without its closing quote"),
        (
            "",
            "a\n",
            "haresources:1:1: `a` needs at least one resource",
        ),
        ("", "a IPaddr::10.0.0.300/24", "haresources:1:3: "),
        ("", "a Filesystem::/dev/drbd0", "needs DEVICE::FOLDER::TYPE"),
        (
            "",
            "c drbddisk::r0",
            "haresources:1:1: resource r0 has no host c",
        ),
    ] {
        let (_dir, request) = heartbeat(&[("ha.cf", conf), ("haresources", line)]);
        let message = refused(&request);
        assert!(message.contains(part), "no {part} in\n{message}");
    }
    let (_dir, request) = heartbeat(&[("haresources", line), ("authkeys", "auth 1\n1 sha9 x\n")]);
    assert!(refused(&request).contains("authkeys:2:3: `1`: `sha9` is not crc, md5 or sha1"));
    let (_dir, request) = heartbeat(&[]);
    assert!(refused(&request).contains("haresources"));
}

#[test]
fn times_that_do_not_fit_are_left_out() {
    let conf = "node a b\nucast eth1 10.0.0.2\nkeepalive 1\ndeadtime 3\nwarntime 5\n";
    let (_dir, request) = heartbeat(&[("ha.cf", conf), ("haresources", "a drbddisk::r0")]);
    let (config, notes) = imported(&request);
    assert!(notes.contains("`warn-after` is left out"), "{notes}");
    assert!(config.cluster.heartbeat.fault().is_none());
    let long = conf.replace("deadtime 3", "deadtime 3600");
    let (_dir, request) = heartbeat(&[("ha.cf", &long), ("haresources", "a drbddisk::r0")]);
    let (_, notes) = imported(&request);
    assert!(
        notes.contains("`lease` of 3600000ms is left out"),
        "{notes}"
    );
}

#[test]
fn mistakes_of_keepalived_are_found_at_their_lines() {
    let good = fs::read_to_string(fixture("vrrp/keepalived.conf")).unwrap();
    for (from, to, part) in [
        (
            "nopreempt",
            "nopremt",
            "k.conf:20:5: unknown statement `nopremt`",
        ),
        (
            "vrrp_script alive",
            "vrrp_scrip alive",
            "did you mean `vrrp_script`?",
        ),
        (
            "state BACKUP",
            "state SLAVE",
            "`SLAVE` is not MASTER or BACKUP",
        ),
        ("{ 192.0.2.2 }", "{ peer }", "`peer` is not an IP address"),
        (
            "192.0.2.10\n",
            "192.0.2.10/x\n",
            "is not ADDRESS or ADDRESS/PREFIX",
        ),
        (
            "interval 1",
            "interval one",
            "`interval`: `one` is not a number",
        ),
        (
            "        alive\n",
            "        alife\n",
            "did you mean `alive`?",
        ),
        ("global_defs {", "global_defs {{", "`{` without the name"),
        (
            "    router_id left\n}",
            "    router_id left\n}}",
            "`}` without an open section",
        ),
        (
            "    notify_stop /usr/local/sbin/tell\n}",
            "",
            "section `vrrp_instance` is not closed",
        ),
        ("--all\"", "--all", "string without its closing quote"),
    ] {
        assert!(good.contains(from), "{from}");
        let dir = folder(&[("k.conf", &good.replace(from, to))]);
        let request = Request {
            keepalived: Some(dir.path().join("k.conf")),
            ..Request::default()
        };
        let message = refused(&request);
        assert!(message.contains(part), "no {part} in\n{message}");
    }
}

#[test]
fn a_master_is_preferred_and_multicast_is_asked_about() {
    let good = fs::read_to_string(fixture("vrrp/keepalived.conf")).unwrap();
    let master = good
        .replace("BACKUP", "MASTER")
        .replace("nopreempt", "preempt");
    let dir = folder(&[("k.conf", &master)]);
    let mut request = Request {
        keepalived: Some(dir.path().join("k.conf")),
        vote: witness(),
        disks: disks(&[("left", "/dev/vdb"), ("right", "/dev/vdb")]),
        ..Request::default()
    };
    let (config, notes) = imported(&request);
    let failover = config.resources[0].failover.as_ref().unwrap();
    assert_eq!(failover.preferred.as_ref().unwrap().value, "left");
    assert!(matches!(failover.failback, Failback::WhenStable(_)));
    assert!(notes.contains("add `mount FOLDER volume 0;`"), "{notes}");
    let multicast = master.replace("unicast_peer { 192.0.2.2 }", "");
    fs::write(request.keepalived.as_ref().unwrap(), multicast).unwrap();
    assert_eq!(
        needs(&request),
        [
            "--address left=ADDRESS:PORT",
            "--address right=ADDRESS:PORT"
        ]
    );
    // Over a disk of DRBD nothing has to be chosen but the vote.
    let over = fs::read_to_string(fixture("vrrp/keepalived.conf")).unwrap();
    let dir = folder(&[
        ("k.conf", &over.replace("192.0.2.2", "10.0.0.2")),
        ("r0.res", RESOURCE),
    ]);
    request = Request {
        drbd: vec![dir.path().join("r0.res")],
        keepalived: Some(dir.path().join("k.conf")),
        vote: Some(Arbiter::Manual),
        ..Request::default()
    };
    assert_eq!(imported(&request).0.resources[0].name.value, "r0");
}

#[test]
fn choices_that_do_not_go_together_are_refused() {
    let request = Request {
        keepalived: Some(fixture("vrrp/keepalived.conf")),
        vote: witness(),
        disks: disks(&[("left", "/dev/vdb"), ("third", "/dev/vdb")]),
        ..Request::default()
    };
    let message = refused(&request);
    assert!(
        message.contains("witness third is one of the nodes"),
        "{message}"
    );
    let request = Request {
        drbd: vec![fixture("nfs/files.res")],
        addresses: addresses(&[("frist", "192.0.2.1:694")]),
        ..Request::default()
    };
    assert!(refused(&request).contains("did you mean `first`?"));
    let request = Request {
        drbd: vec![fixture("nfs/files.res")],
        disks: disks(&[("first", "/dev/vdb")]),
        ..Request::default()
    };
    assert!(imported(&request).1.contains("the sources name its disk"));
}

#[test]
fn without_a_key_file_connections_have_a_secret() {
    let request = Request {
        drbd: vec![fixture("nfs/files.res")],
        ..Request::default()
    };
    let key = Key::Secret(PathBuf::from("/k"), "s3cret".to_owned());
    let imported = import(&request).unwrap().with_key(&key);
    let config = Config::parse_str("imported", &imported.text).unwrap();
    assert_eq!(config.resources[0].key().unwrap(), "s3cret");
    assert!(
        imported
            .notes
            .iter()
            .any(|note| note.contains("lockstep keygen"))
    );
}

/// A piece taken out, and another put somewhere else.
fn mangled(text: &str, [from, len, piece, to]: [usize; 4], insert: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let place = |at: usize, chars: &[char]| at % (chars.len() + 1);
    let copied = chars.iter().skip(place(piece, &chars)).take(len);
    let copied: Vec<char> = copied.copied().collect();
    let from = place(from, &chars);
    chars.drain(from..(from + len).min(chars.len()));
    let to = place(to, &chars);
    chars.splice(to..to, insert.chars().chain(copied));
    chars.into_iter().collect()
}

const MANGLED: [&str; 5] = [
    "nfs/ha.cf",
    "nfs/haresources",
    "nfs/authkeys",
    "nfs/files.res",
    "vrrp/keepalived.conf",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mangled_sources_never_panic(
        cuts in prop::array::uniform4(0..4000usize),
        len in 0..60usize,
        insert in "[ -~\n\\PC]{0,6}",
    ) {
        let cuts = [cuts[0], len, cuts[2], cuts[3]];
        let dir = tempfile::tempdir().unwrap();
        for name in MANGLED {
            let text = fs::read_to_string(fixture(name)).unwrap();
            let name = Path::new(name).file_name().unwrap();
            fs::write(dir.path().join(name), mangled(&text, cuts, &insert)).unwrap();
        }
        let whole = Request {
            vote: witness(),
            addresses: addresses(&[("first", "192.0.2.1:694"), ("second", "192.0.2.2:694")]),
            disks: disks(&[("first", "/dev/vdb"), ("second", "/dev/vdb")]),
            ..Request::default()
        };
        let heartbeat = Request { heartbeat: Some(dir.path().to_owned()), ..whole.clone() };
        let over_drbd = Request { drbd: vec![dir.path().join("files.res")], ..heartbeat.clone() };
        let keepalived = Request { keepalived: Some(dir.path().join("keepalived.conf")), ..whole };
        for request in [heartbeat, over_drbd, keepalived] {
            match import(&request) {
                Ok(prepared) => {
                    let text = prepared.with_key(&Key::File(PathBuf::from("/k"))).text;
                    prop_assert!(Config::parse_str("imported", &text).is_ok(), "{}", text);
                }
                Err(Failure::Wrong(errors)) => prop_assert!(!errors.is_empty()),
                Err(Failure::Needs { needs, .. }) => prop_assert!(!needs.is_empty()),
            }
        }
    }
}
