//! Rules of the language, each with a file that keeps it and one that breaks it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::agent::protocol::FrontEnd;
use crate::engine::pace::Limits;

use super::*;

/// A pair in which `$top` precedes the resource and `$body` is in it; each host brings its own
/// address and, with `$host`, more.
pub(super) fn pair_with(top: &str, body: &str, host: &str) -> String {
    format!(
        "{top}\nresource r0 {{\n{body}\n\
         on alpha {{ address 10.0.0.1:7789; {host} }}\n\
         on beta {{ address 10.0.0.2:7789; {host} }}\n}}\n"
    )
}

pub(super) fn pair(top: &str, body: &str) -> String {
    let volume = "device /dev/ublkb0; disk /dev/vg0/r0; meta-disk internal;";
    pair_with(top, &format!("{volume}\n{body}"), "")
}

pub(super) fn parse(text: &str) -> Config {
    Config::parse_str("f", text).unwrap_or_else(|errors| panic!("{}\n{text}", render(&errors)))
}

fn render(errors: &[Diagnostic]) -> String {
    let texts: Vec<String> = errors.iter().map(Diagnostic::to_string).collect();
    texts.join("\n")
}

/// The rendered messages of a text that must be refused.
pub(super) fn refused(text: &str) -> String {
    match Config::parse_str("f", text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(errors) => {
            assert!(!errors.is_empty());
            render(&errors)
        }
    }
}

/// Refused with exactly one message that holds all of `parts`.
pub(super) fn refused_once(text: &str, parts: &[&str]) {
    let message = refused(text);
    assert_eq!(message.matches("error: ").count(), 1, "{message}");
    for part in parts {
        assert!(message.contains(part), "no {part:?} in:\n{message}");
    }
}

#[test]
fn a_pair_has_what_the_agent_needs() {
    let text = pair(
        "common { net { ping-int 20; } }",
        "net { protocol a; ping-timeout 250ms; timeout 3s; shared-secret \"s\"; sndbuf-size 1M; }
         disk { al-extents 379; on-io-error detach; } failover { start-policy manual; }",
    );
    let config = parse(&text);
    assert!(config.warnings.is_empty());
    let resource = config.resource("r0").unwrap();
    assert_eq!(resource.start_policy(), StartPolicy::Manual);
    assert_eq!(resource.net.send_buffer, 1 << 20);
    let local = resource.for_node("beta").unwrap();
    let serve = local.serve_config(resource.key().unwrap());
    assert_eq!(
        (serve.protocol, serve.ko_count, serve.al_extents),
        ('A', 7, 379)
    );
    assert_eq!(serve.address, "10.0.0.2:7789");
    assert_eq!(serve.peer_address, "10.0.0.1:7789");
    assert_eq!(serve.peer_name, "alpha");
    assert_eq!((serve.ping_interval, serve.ping_timeout), (20_000, 250));
    assert_eq!((serve.timeout, serve.connect_interval), (3000, 10_000));
    assert_eq!(&*serve.shared_secret, "s");
    assert_eq!(serve.volumes.len(), 1);
    assert_eq!(serve.volumes[0].front, FrontEnd::Ublk { minor: 0 });
    assert!(serve.volumes[0].internal_meta);
    let volume = local.volume(0).unwrap();
    assert_eq!(volume.disk.value, Path::new("/dev/vg0/r0"));
    assert!(local.volume(1).is_none());
}

#[test]
fn every_written_cap_of_a_resync_counts_and_none_is_none() {
    let limits = |body: &str| {
        let config = parse(&pair("", body));
        let local = config.resources[0].for_node("alpha").unwrap();
        Limits::from(local.serve_config(String::new()).volumes[0].resync)
    };
    assert_eq!(limits(""), Limits::default());
    let all = limits(
        "disk { resync-rate 50M; c-max-rate 100M; c-min-rate 2M; c-plan-ahead 0;
         c-delay-target 500ms; c-fill-target 1M; }",
    );
    let expected = Limits {
        cap: Some(50 << 20),
        floor: Some(2 << 20),
        plan_ahead: Duration::ZERO,
        delay_target: Duration::from_millis(500),
        fill_target: 1 << 20,
    };
    assert_eq!(all, expected);
    assert_eq!(limits("syncer { rate 10M; }").cap, Some(10 << 20));
    assert_eq!(
        limits("disk { resync-rate 9M; c-max-rate 8M; }").cap,
        Some(8 << 20)
    );
    let unlimited = limits("disk { c-max-rate 0; c-min-rate 0; }");
    assert_eq!((unlimited.cap, unlimited.floor), (None, Some(0)));
}

#[test]
fn an_option_on_the_command_line_is_read_as_in_the_file() {
    assert_eq!(disk_number("resync-rate", "50M"), Ok(50 << 20));
    assert_eq!(disk_number("c-max-rate", "100"), Ok(100 << 10));
    assert_eq!(disk_number("c-plan-ahead", "20"), Ok(2000));
    for (name, text) in [
        ("resync-rate", "0"),
        ("resync-rate", "fast"),
        ("c-delay-target", "1h"),
    ] {
        let error = disk_number(name, text).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn the_nearest_level_wins() {
    let config = parse(&pair_with(
        "common { protocol B; net { ping-int 20; connect-int 30; } disk { al-extents 100; } }",
        "disk /dev/far; device minor 4; net { ping-int 15; }",
        "disk /dev/near; meta-disk /dev/meta[0];",
    ));
    let resource = &config.resources[0];
    assert_eq!(resource.net.protocol, Protocol::B);
    assert_eq!(resource.net.ping_interval, Duration::from_secs(15));
    assert_eq!(resource.net.connect_interval, Duration::from_secs(30));
    let volume = &resource.hosts[0].volumes[0];
    assert_eq!(volume.options.al_extents, 100);
    assert_eq!(volume.disk.value, Path::new("/dev/near"));
    assert_eq!(volume.meta_path(), Some(Path::new("/dev/meta")));
}

#[test]
fn explicit_volumes_are_inherited_one_value_at_a_time() {
    let config = parse(&pair_with(
        "",
        "volume 0 { device /dev/ublkb0; disk /dev/a; }
         volume 7 { device nbd+unix:///x?socket=/run/x; disk { al-extents 67; } }
         disk { al-extents 67; }",
        "volume 7 { disk /dev/b; }",
    ));
    let numbers = |host: &Host| host.volumes.iter().map(|v| v.number).collect::<Vec<_>>();
    for host in &config.resources[0].hosts {
        assert_eq!(numbers(host), [0, 7]);
        assert_eq!(host.volumes[0].meta.value, MetaDisk::Internal);
        assert_eq!(host.volumes[1].disk.value, Path::new("/dev/b"));
    }
}

#[test]
fn the_file_of_version_8_3_reads() {
    let config = parse(
        "resource r0 { protocol C; startup { wfc-timeout 120; become-primary-on both; }
           disk { md-flushes; fencing dont-care; on-no-data-accessible io-error; }
           syncer { al-extents 379; use-rle; }
           on a { device /dev/drbd0; disk /dev/sdb1; address 172.16.1.113:7788;
                  meta-disk /dev/sdb2[0]; }
           on b { device /dev/drbd0; disk /dev/sdb1; address ipv4 172.16.1.114:7788;
                  flexible-meta-disk /dev/sdb2; } }",
    );
    let [a, b] = &config.resources[0].hosts;
    assert_eq!(a.volumes[0].options.al_extents, 379);
    assert_eq!(a.volumes[0].meta_path(), b.volumes[0].meta_path());
    assert_eq!(
        a.address.value,
        "172.16.1.113:7788".parse::<SocketAddr>().unwrap()
    );
    assert_ne!(a.node_id, b.node_id);
}

#[test]
fn what_has_no_meaning_here_is_accepted() {
    parse(&pair(
        "global { usage-count yes; minor-count 5; dialog-refresh 1; udev-always-use-vnr; }
         require-drbd-module-version-ge 9.0.16; ;; skip resource x { y; }",
        "skip net { nonsense; } net { tcp-cork no; _unknown foo; }
         options { auto-promote-timeout 10; } handlers { }",
    ));
}

#[test]
fn node_ids_come_from_the_host_the_cluster_or_the_addresses() {
    let ids = |text: &str| {
        parse(text).resources[0]
            .hosts
            .each_ref()
            .map(|host| host.node_id)
    };
    let nodes = "cluster { mode manual; node alpha { node-id 3; } node beta { node-id 2; } }";
    assert_eq!(ids(&pair(nodes, "")), [3, 2]);
    assert_eq!(ids(&pair("", "")), [1, 0]);
    let explicit = pair("", "").replace(".1:7789;", ".1:7789; node-id 5;");
    refused_once(&explicit, &["`node-id` is missing on host beta", "f:6:1:"]);
    let explicit = explicit.replace(".2:7789;", ".2:7789; node-id 6;");
    assert_eq!(ids(&explicit), [5, 6]);
    refused_once(
        &explicit.replace("id 6", "id 5"),
        &["alpha and beta both have node-id 5"],
    );
    refused_once(
        &explicit.replace("id 6", "id 16"),
        &["`16` is not a number from 0 to 15"],
    );
    let nodes = "cluster { node alpha { node-id 4; } }";
    refused_once(
        &format!("{nodes}{explicit}"),
        &["host alpha has node-id 5 here and 4 in the `cluster` section"],
    );
}

#[test]
fn a_host_has_all_its_names() {
    let config = parse(&pair("", "").replace("on alpha", "on alpha alpha.example.com"));
    let resource = config.resource("r0").unwrap();
    let local = resource.for_node("alpha.example.com").unwrap();
    assert_eq!(local.own.name(), "alpha");
    let error = resource.for_node("gamma").unwrap_err();
    assert_eq!(
        error.to_string(),
        "error: resource r0 has no host gamma\nhelp: its hosts are alpha, alpha.example.com, beta; \
         name one with --node, or rename the `on` section"
    );
    assert!(matches!(*error.kind, DiagnosticKind::NoSuchHost { .. }));
    assert_eq!(config.resources_of("beta").count(), 1);
    assert_eq!(config.resources_of("gamma").count(), 0);
    let error = config.resource("r1").unwrap_err();
    assert_eq!(
        error.to_string(),
        "error: no resource r1 in the configuration\nhelp: did you mean `r0`?"
    );
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (body, what) in [
        ("net { latency-profile low; }", "`latency-profile`"),
        ("syncer { cpu-mask 3; }", "`cpu-mask`"),
        ("net { transport rdma; }", "`transport rdma`"),
        ("net { data-path zero-copy; }", "`data-path zero-copy`"),
        ("net { allow-two-primaries; }", "`allow-two-primaries yes`"),
        ("disk { on-io-error pass_on; }", "`on-io-error pass_on`"),
        ("disk { no-disk-flushes; }", "`disk-flushes no`"),
        ("disk { md-flushes no; }", "`md-flushes no`"),
        ("disk { disk-timeout 10; }", "`disk-timeout`"),
        ("options { quorum majority; }", "`quorum majority`"),
        ("handlers { split-brain \"x\"; }", "`split-brain`"),
        ("connection-mesh { hosts alpha beta; }", "`connection-mesh`"),
        ("stacked-on-top-of r1 { }", "`stacked-on-top-of`"),
        ("floating 10.0.0.1:7 { }", "`floating`"),
    ] {
        refused_once(
            &pair("", body),
            &[what, "is not supported by this version", "help: "],
        );
    }
    for (top, what) in [
        ("global { drbd-links yes; }", "`drbd-links yes`"),
        ("common { proxy { } }", "`proxy`"),
    ] {
        refused_once(&pair(top, ""), &[what, "is not supported by this version"]);
    }
    for (host, what) in [
        ("disk none;", "`disk none`"),
        ("disk /dev/a; meta-disk /dev/b[1];", "`meta-disk /dev/b[1]`"),
        ("disk /dev/a; proxy on x { }", "`proxy`"),
    ] {
        let message = refused(&pair_with("", "device minor 1;", host));
        assert!(
            message.contains(what) && message.contains("not supported"),
            "{message}"
        );
    }
    refused_once(
        &pair("", "").replace(".1:7789;", ".1:7789 via proxy on x { }"),
        &["`via proxy` is not supported"],
    );
}

#[test]
fn values_are_checked_with_their_range_or_their_choices() {
    for (body, part) in [
        (
            "net { ping-int 200; }",
            "`ping-int`: 200 is out of range: 1 to 120 seconds",
        ),
        (
            "net { timeout 99999999999999999999; }",
            "is out of range: 1 to 600 tenths of a second",
        ),
        (
            "net { ping-timeout 1ms; }",
            "`ping-timeout`: 1ms is out of range: 1 to 300 tenths",
        ),
        ("net { ko-count -1; }", "`-1` is not a number"),
        (
            "net { ping-int 5x; }",
            "`5x` is not a number, with `ms`, `s`, `m` or `h`",
        ),
        ("net { protocol D; }", "`D` is not one of C, B, A"),
        (
            "net { cram-hmac-alg sha2; }",
            "`sha2` is not one of sha1, sha256, sha512, md5",
        ),
        ("net { transport tpc; }", "did you mean `tcp`?"),
        ("net { tcp-cork maybe; }", "`maybe` is not `yes` or `no`"),
        (
            "net { no-tcp-cork yes; }",
            "unexpected `yes` after `no-tcp-cork`",
        ),
        (
            "net { ping-int; }",
            "`ping-int` needs a number from 1 to 120 seconds",
        ),
        ("net { ping-int 5 6; }", "unexpected `6` after `ping-int`"),
        ("net { ping-int { } }", "`ping-int` is not a section"),
        ("net { shared-secret \"\"; }", "`` is not a text"),
        (
            "failover { start-policy never; }",
            "`never` is not one of auto, manual",
        ),
        ("net x { }", "unexpected `x` after `net`"),
        ("net;", "`net` is a section"),
        ("volume;", "`volume` is a section"),
        ("disk x { }", "unexpected `x` after `disk`"),
    ] {
        refused_once(&pair("", body), &[part]);
    }
    let long = format!("net {{ shared-secret {}; }}", "x".repeat(64));
    refused_once(
        &pair("", &long),
        &["`shared-secret` is longer than 63 characters"],
    );
    refused_once(
        &pair("cluster { mode sometimes; }", ""),
        &["one of manual, unsafe-two-node"],
    );
}

#[test]
fn al_extents_are_clamped_with_a_warning() {
    for (written, used) in [("10", 67), ("100000", 65534)] {
        let body = format!("net {{ shared-secret s; }} disk {{ al-extents {written}; }}");
        let config = parse(&pair("", &body));
        assert_eq!(
            config.resources[0].hosts[0].volumes[0].options.al_extents,
            used
        );
        assert_eq!(config.warnings.len(), 1);
        assert_eq!(config.warnings[0].severity(), Severity::Warning);
        assert!(config.warnings[0].to_string().starts_with("warning: f:"));
    }
}

#[test]
fn timeout_is_the_shortest() {
    refused_once(
        &pair("", "net { timeout 100; ping-int 11; }"),
        &["not below `connect-int` (10000 ms)"],
    );
    refused_once(
        &pair("", "net { timeout 5s; ping-int 5; }"),
        &["not below `ping-int` (5000 ms)"],
    );
    parse(&pair("", "net { timeout 99; }"));
}

#[test]
fn authentication_is_a_secret_or_a_key_file() {
    let config = parse(&pair("", ""));
    assert!(config.resources[0].is_unauthenticated());
    assert!(matches!(
        *config.warnings[0].kind,
        DiagnosticKind::Unauthenticated { .. }
    ));
    assert_eq!(config.resources[0].key().unwrap(), "");
    refused_once(
        &pair("", "net { cram-hmac-alg sha1; }"),
        &["`cram-hmac-alg` without `shared-secret`"],
    );
    parse(&pair("", "net { cram-hmac-alg sha1; shared-secret x; }"));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let top = format!("cluster {{ key-file {}; }}", path.display());
    let config = parse(&pair(&top, "net { cram-hmac-alg sha1; }"));
    assert!(config.warnings.is_empty());
    let key = || config.resources[0].key().map_err(|error| error.to_string());
    assert!(key().unwrap_err().contains("key file"));
    let mode = |mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, permissions).unwrap();
    };
    std::fs::write(&path, "\n").unwrap();
    mode(0o600);
    assert!(key().unwrap_err().contains("it is empty"));
    std::fs::write(&path, "deadbeef\n").unwrap();
    assert_eq!(key().unwrap(), "deadbeef");
    mode(0o640);
    assert!(key().unwrap_err().contains("by others than its owner"));
}

#[test]
fn a_resource_has_two_hosts_with_the_same_volumes() {
    refused_once(
        "resource r0 { on a { device minor 0; disk /a; address 1.2.3.4:5; } }",
        &["resource r0: 1 `on` sections, two are needed"],
    );
    let three = pair("", "on gamma { address 10.0.0.3:7789; }");
    refused_once(&three, &["resource r0: 3 `on` sections", "exactly two"]);
    refused_once(
        &pair("", "").replace("address 10.0.0.1:7789;", ""),
        &["host alpha of resource r0 has no `address`"],
    );
    let message = refused(&pair_with("", "", "device minor 1;"));
    assert_eq!(message.matches("volume 0 on host").count(), 2, "{message}");
    assert!(message.contains("has no `disk`"), "{message}");
    refused_once(
        &pair_with("", "volume 0 { device minor 1; disk /a; }", "")
            .replace(".1:7789;", ".1:7789; volume 1 { device minor 2; disk /b; }"),
        &["host beta has no volume 1"],
    );
    refused_once(
        &pair("", "").replace(".1:7789;", ".1:7789; volume 1 { device minor 2; disk /b; }"),
        &["`volume` sections mixed with a bare `device`"],
    );
    refused_once(
        &pair_with(
            "",
            "volume 0 { device minor 0; disk /a; }
             volume 1 { device minor 1; disk /b; disk { al-extents 99; } }",
            "",
        ),
        &["different `al-extents`"],
    );
}

#[test]
fn a_thing_is_said_once() {
    for (text, what) in [
        (
            pair("", "protocol A; net { protocol B; }"),
            "`protocol` is given twice, first at f:4:1",
        ),
        (
            pair("", "device minor 3;"),
            "`device` is given twice, first at f:3:8",
        ),
        (
            pair("", "volume 0 { } volume 0 { }"),
            "volume 0 is given twice",
        ),
        (
            pair("global { } global { }", ""),
            "section `global` is given twice",
        ),
        (
            pair("common { } common { }", ""),
            "section `common` is given twice",
        ),
        (
            pair("", "").replace("on beta", "on alpha"),
            "host alpha is given twice",
        ),
        (
            pair(
                "cluster { node a { node-id 1; } node a { node-id 1; } }",
                "",
            ),
            "node a is given twice",
        ),
        (
            pair("", "")
                + &pair("", "")
                    .replace("7789", "7790")
                    .replace("ublkb0", "ublkb1")
                    .replace("/r0", "/r1"),
            "resource r0 is given twice",
        ),
    ] {
        refused_once(&text, &[what]);
    }
    // The same again is no contradiction.
    parse(&pair(
        "",
        "protocol A; net { protocol a; } net { protocol A; }",
    ));
}

#[test]
fn clashes_name_both_places() {
    let second = |from: &str, to: &str| {
        let other = pair("", "")
            .replace("r0", "r1")
            .replace("7789", "7790")
            .replace("ublkb0", "ublkb1");
        assert!(other.contains(from), "{other}");
        format!("{}{}", pair("", ""), other.replace(from, to))
    };
    parse(&second("r1", "r1"));
    let clash = |from, to, part: &str| {
        let message = refused(&second(from, to));
        assert!(message.contains(part), "{message}");
    };
    clash("ublkb1", "ublkb0", "device minor 0 is used twice");
    clash(
        "/dev/vg0/r1",
        "/dev//vg0/r0",
        "disk /dev/vg0/r0 is used twice",
    );
    clash(
        "internal",
        "/dev/vg0/r0",
        "by metadata of volume r1/0, and by volume r0/0 at f:3:26",
    );
    clash("7790", "7789", "is used twice");
    // What both hosts inherit is reported once, what each has for itself once for each.
    refused_once(&second("ublkb1", "ublkb0"), &["on host alpha"]);
    let message = refused(&second("7790", "7789"));
    assert!(
        message.contains("on host alpha") && message.contains("on host beta"),
        "{message}"
    );
    let same = pair("", "").replace("10.0.0.2", "10.0.0.1");
    refused_once(&same, &["both hosts have the address 10.0.0.1:7789"]);
}

#[test]
fn an_nbd_listener_belongs_to_one_volume() {
    let volumes = |first: &str, second: &str| {
        let body = format!(
            "volume 0 {{ device {first}; disk /a; }} volume 1 {{ device {second}; disk /b; }}"
        );
        pair_with("", &body, "")
    };
    let x = "nbd+unix:///x?socket=/run/s";
    let y = "nbd+unix:///y?socket=/run/s";
    parse(&volumes(x, "nbd+unix:///x?socket=/run/t"));
    assert!(refused(&volumes(x, y)).contains("socket /run/s is used twice"));
    parse(&volumes("nbd://127.0.0.1:1/x", "nbd://127.0.0.1:2/x"));
    let message = refused(&volumes("nbd://127.0.0.1:1/x", "nbd://127.0.0.1:1/y"));
    assert!(
        message.contains("address 127.0.0.1:1 is used twice on host alpha"),
        "{message}"
    );
    let message = refused(&volumes("nbd://10.0.0.1:7789/x", "nbd://127.0.0.1:1/y"));
    assert!(
        message.contains("address 10.0.0.1:7789 is used twice on host alpha"),
        "{message}"
    );
    let resource = |name: &str, device: &str, port: &str| {
        pair("", "")
            .replace("r0", name)
            .replace("/dev/ublkb0", device)
            .replace("7789", port)
    };
    let two = resource("r1", x, "1") + &resource("r2", y, "2");
    assert!(refused(&two).contains("socket /run/s is used twice"));
    let long = format!("nbd+unix:///x?socket=/{}", "s".repeat(107));
    refused_once(
        &resource("r1", &long, "1"),
        &["108 bytes long, the kernel allows 107"],
    );
    parse(&resource("r1", &long[..long.len() - 1], "1"));
}

#[test]
fn names_and_paths_are_checked() {
    for name in ["all", "a/b", "a:b", "-x", "\"\"", "\"a b\""] {
        let text = pair("", "").replace("resource r0", &format!("resource {name}"));
        refused_once(&text, &["bad name"]);
    }
    refused_once(
        &pair("", "").replace("/dev/vg0/r0", "vg0/r0"),
        &["path `vg0/r0` is not absolute"],
    );
    refused_once(
        &pair("", "").replace("internal", "intern"),
        &["path `intern` is not absolute"],
    );
    refused_once(
        &pair("", "").replace("internal", "/dev/x[y]"),
        &["`/dev/x[y]` is not `internal`, a device"],
    );
    refused_once(
        &pair("", "").replace("/dev/ublkb0", "/dev/vdb"),
        &["bad device `/dev/vdb`: not a device"],
    );
    refused_once("resource { }", &["`resource` needs a name"]);
    refused_once(
        &pair("", "volume x { }"),
        &["`x` is not a number from 0 to 65535"],
    );
}

#[test]
fn a_word_in_the_wrong_place_is_sent_to_the_right_one() {
    refused_once(
        &pair("", "disk { ping-int 1; }"),
        &["`ping-int` cannot stand in `disk`", "it belongs in `net`"],
    );
    refused_once(
        &pair("", "address 1.2.3.4:5;"),
        &["cannot stand in `resource`", "it belongs in `on`"],
    );
    refused_once(
        &pair("net { }", ""),
        &["cannot stand in the top level", "`common` or `resource`"],
    );
    refused_once(&pair("", "include \"x\";"), &["`include` inside a section"]);
    refused_once(&pair("", "\"net\" { }"), &["`net`"]);
}

#[test]
fn a_missing_semicolon_costs_one_message() {
    refused_once(
        &pair("", "net { ping-int 5\n ping-timeout 5; }"),
        &["f:4:17: missing `;` after `5`"],
    );
    refused_once(&pair("", "protocol C"), &["f:4:11: missing `;` after `C`"]);
    refused_once(
        &pair("", "protocol C\n net { }"),
        &["missing `;` after `C`"],
    );
    refused_once(
        &pair_with("", "device minor 0;", "disk /dev/vdb\n meta-disk internal;").replacen(
            "disk /dev/vdb\n",
            "disk /dev/vdb;\n",
            1,
        ),
        &["missing `;` after `/dev/vdb`"],
    );
    // Two lines are fine where they are one statement.
    parse(&pair("", "").replace("/dev/ublkb0;", "/dev/drbd_x\n minor\n 3;"));
}

#[test]
fn several_mistakes_are_reported_together() {
    let message = refused(&pair("", "net { pingint 5; timeout 0; }\nvolum 1 { }"));
    assert_eq!(message.matches("error: ").count(), 3, "{message}");
    let many = refused(&pair("", &"x;".repeat(500)));
    assert_eq!(many.matches("error: ").count(), MAX_MESSAGES);
}

#[test]
fn a_large_bad_file_is_refused_soon() {
    for piece in [
        "x;",
        "} ",
        "\u{1}",
        "resource r { }",
        "common { disk { al-extents 1; } }",
    ] {
        let text = piece.repeat(60_000);
        assert!(Config::parse_str("f", &text).unwrap_err().len() <= MAX_MESSAGES);
    }
}

#[test]
fn a_file_of_the_default_places_is_chosen_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (own, drbd) = (dir.path().join("own"), dir.path().join("drbd"));
    let error = first_existing([&own, &drbd]).unwrap_err();
    assert!(matches!(*error.kind, DiagnosticKind::NoFile(..)));
    std::fs::write(&drbd, "").unwrap();
    assert_eq!(first_existing([&own, &drbd]).unwrap(), drbd);
    std::fs::write(&own, "").unwrap();
    assert_eq!(first_existing([&own, &drbd]).unwrap(), own);
}

#[test]
fn a_file_that_is_not_text_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, b"global { }\n# \xff\n").unwrap();
    let errors = Config::load(&path).unwrap_err();
    assert_eq!(*errors[0].kind, DiagnosticKind::NotUtf8);
    assert_eq!(errors[0].location.as_ref().unwrap().line, 2);
    let errors = Config::load(&dir.path().join("none")).unwrap_err();
    assert!(matches!(*errors[0].kind, DiagnosticKind::Unreadable { .. }));
    assert!(Config::load(dir.path()).is_err());
}

#[test]
fn json_has_every_default() {
    let json = dump::json(&parse(&pair("", "net { timeout 3s; }")));
    let resource = &json["resources"][0];
    assert_eq!(resource["net"]["timeout"], 3000);
    assert_eq!(resource["net"]["protocol"], "C");
    assert_eq!(resource["net"]["allow-two-primaries"], false);
    assert_eq!(resource["net"]["shared-secret"], serde_json::Value::Null);
    assert_eq!(resource["disk"]["al-extents"], 1237);
    assert_eq!(resource["hosts"][0]["volumes"][0]["device"], "/dev/ublkb0");
    assert_eq!(resource["failover"]["start-policy"], "auto");
}

/// Three resources, the first with two volumes, each with its own words in `disk`.
fn chain(top: &str, disks: [&str; 4]) -> String {
    let volume = |number: usize, minor: usize| {
        let words = disks[minor];
        format!(
            "volume {number} {{ device minor {minor}; disk /dev/vg0/v{minor};
             meta-disk internal; disk {{ {words} }} }}"
        )
    };
    let resource = |name: &str, volumes: String, port: u16| {
        format!(
            "resource {name} {{ net {{ shared-secret s; }} {volumes}
             on alpha {{ address 10.0.0.1:{port}; }} on beta {{ address 10.0.0.2:{port}; }} }}\n"
        )
    };
    let both = volume(0, 0) + &volume(1, 1);
    top.to_owned()
        + &resource("r0", both, 1)
        + &resource("r1", volume(0, 2), 2)
        + &resource("r2", volume(0, 3), 3)
}

#[test]
fn syncs_wait_for_others_as_written_and_the_dump_says_so() {
    let text = chain(
        "global { max-parallel-resyncs 2; } common { disk { resync-rate 1M; } }",
        ["", "resync-after r0/0;", "after r0; resync-rate 2M;", ""],
    );
    let config = parse(&text);
    assert_eq!(config.global.max_syncs, 2);
    let after = |name: &str, volume: usize| {
        let host = &config.resource(name).unwrap().hosts[1];
        host.volumes[volume].options.resync_after.clone()
    };
    assert_eq!(after("r0", 0), None);
    let first = Some(After {
        resource: "r0".to_owned(),
        volume: Some(0),
    });
    assert_eq!(after("r0", 1), first);
    assert!(after("r1", 0).is_some_and(|a| a.means("r0", 1) && !a.means("r1", 0)));
    let dumped = dump::text(&config);
    assert_eq!(parse(&dumped), config, "{dumped}");
    assert!(dumped.contains("max-parallel-resyncs 2;"), "{dumped}");
    let json = dump::json(&config);
    let options = &json["resources"][0]["hosts"][0]["volumes"][1]["options"];
    assert_eq!(options, &serde_json::json!({ "resync-after": "r0/0" }));
    assert_eq!(json["resources"][1]["disk"]["resync-rate"], 2 << 20);
}

#[test]
fn syncs_that_wait_for_nobody_or_in_a_circle_are_refused_at_the_place() {
    let none = ["", "", "", ""];
    let with = |index: usize, words: &'static str| {
        let mut disks = none;
        disks[index] = words;
        disks
    };
    refused_once(
        &chain("", with(0, "resync-after rr1/0;")),
        &["f:2:", "there is no resource rr1", "did you mean `r1`?"],
    );
    refused_once(
        &chain("", with(2, "resync-after r0/7;")),
        &["r0 has no volume 7", "resync-after RES/VOL"],
    );
    for bad in ["r0/x", "/0", "r0/70000"] {
        let words = format!("resync-after {bad};");
        let text = chain("", ["", "", "", &words]);
        refused_once(&text, &["is not RESOURCE or RESOURCE/VOLUME"]);
    }
    refused_once(
        &chain("", with(1, "resync-after r0;")),
        &["in a circle: r0/1 after r0/1"],
    );
    let ring = [
        "resync-after r2;",
        "",
        "resync-after r0/0;",
        "resync-after r1/0;",
    ];
    refused_once(
        &chain("", ring),
        &["r0/0 after r2/0 after r1/0 after r0/0", "take one of these"],
    );
    // Each of two hosts could wait for what the other one waits with.
    let text = pair("common { disk { resync-after r0; } }", "");
    refused_once(&text, &["f:1:17:", "r0/0 after r0/0"]);
}

#[test]
fn a_schedule_is_refused_for_the_word_that_is_wrong() {
    let net = |words: &str| pair("", &format!("net {{ shared-secret s; {words} }}"));
    let config = parse(&net("verify-schedule \"mon,wed 4:30\";"));
    let schedule = config.resource("r0").unwrap().net.verify_schedule;
    assert_eq!(schedule.unwrap().to_string(), "Mon,Wed 04:30");
    assert_eq!(parse(&dump::text(&config)), config);
    refused_once(
        &net("verify-schedule \"Sunn 03:00\";"),
        &["`Sunn` is not a day from Mon to Sun", "did you mean `Sun`?"],
    );
    refused_once(
        &net("verify-schedule \"Sun 25:00\";"),
        &["`25:00` is not a time from 00:00 to 23:59"],
    );
    refused_once(
        &net("verify-schedule weekly;"),
        &["`weekly` is not days and a local time", "\"Sun 03:00\""],
    );
}

#[test]
fn handlers_are_kept_and_those_that_nothing_calls_are_refused() {
    let handlers = |words: &str| {
        pair(
            "",
            &format!("net {{ shared-secret s; }} handlers {{ {words} }}"),
        )
    };
    let config = parse(&handlers(
        "out-of-sync \"mail -s oops root\"; before-resync-target /bin/true;",
    ));
    let resource = config.resource("r0").unwrap();
    assert_eq!(
        resource.handlers.out_of_sync.as_deref(),
        Some("mail -s oops root")
    );
    assert_eq!(resource.handlers.after_resync_target, None);
    let guarded = |config: &Config| {
        let local = config.resource("r0").unwrap().for_node("alpha").unwrap();
        local.serve_config(String::new()).guarded
    };
    assert!(guarded(&config));
    assert!(!guarded(&parse(&handlers("out-of-sync \"x\";"))));
    assert_eq!(parse(&dump::text(&config)), config);
    refused_once(
        &handlers("split-brain \"mail\";"),
        &["`split-brain` is not supported by this version"],
    );
}
