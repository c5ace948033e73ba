//! The sections `cluster` and `failover`: what is accepted, what follows what, what is refused.

use std::time::Duration;

use super::tests::{pair, pair_with, parse, refused, refused_once};
use super::*;

const NODES: &str = "node alpha { node-id 0; path 10.0.0.1:7794; }
     node beta { node-id 1; path 10.0.0.2:7794; }";
const WITNESS: &str = "witness gamma { address 10.0.0.3:7795; }";

fn cluster(body: &str) -> String {
    pair(&format!("cluster {{ {body} }}"), "")
}

fn with_failover(body: &str) -> String {
    pair(
        "cluster { mode manual; }",
        &format!("failover {{ {body} }}"),
    )
}

fn failover(body: &str) -> Failover {
    let config = parse(&with_failover(body));
    config.resources[0].failover.clone().unwrap()
}

fn heartbeat(body: &str) -> [u64; 5] {
    let config = parse(&cluster(&format!("heartbeat {{ {body} }}")));
    let times = &config.cluster.heartbeat;
    [
        times.interval,
        times.warn_after,
        times.dead_after,
        times.lease,
        times.boot_wait,
    ]
    .map(|time| time.as_millis() as u64)
}

#[test]
fn unwritten_times_follow_the_written_ones() {
    for (body, times) in [
        ("", [250, 500, 1000, 3000, 10_000]),
        (
            "interval 100ms; dead-after 500ms; lease 1s;",
            [100, 300, 500, 1000, 10_000],
        ),
        ("dead-after 400ms;", [100, 250, 400, 3000, 10_000]),
        ("lease 1s;", [125, 500, 625, 1000, 10_000]),
        ("interval 2s;", [2000, 5000, 8000, 16_000, 10_000]),
        ("interval 9s;", [9000, 22_500, 36_000, 72_000, 36_000]),
        (
            "interval 2s; warn-after 10s; lease 30s; boot-wait 120s;",
            [2000, 10_000, 20_000, 30_000, 120_000],
        ),
        ("warn-after 3s;", [250, 3000, 6000, 12_000, 10_000]),
    ] {
        // A default that no rule touches stays.
        assert_eq!(heartbeat(body), times, "{body}");
    }
}

#[test]
fn the_margin_is_half_a_second_or_a_quarter_of_the_lease() {
    let margin = |body: &str| {
        let config = parse(&cluster(&format!("heartbeat {{ {body} }}")));
        config.cluster.heartbeat.margin().as_millis()
    };
    assert_eq!(margin(""), 500);
    assert_eq!(margin("lease 2s;"), 500);
    assert_eq!(margin("interval 100ms; dead-after 500ms; lease 1s;"), 250);
}

#[test]
fn times_that_do_not_go_together_are_refused_with_numbers_and_a_way_out() {
    for (body, parts) in [
        (
            "heartbeat { interval 600ms; dead-after 1s; }",
            [
                "f:1:39: `dead-after` (1000 ms) is not more than twice `interval` (600 ms)",
                "write `dead-after` above 1200ms, or `interval` below 500ms",
            ],
        ),
        (
            "heartbeat { warn-after 1s; dead-after 1s; }",
            [
                "`warn-after` (1000 ms) is not shorter than `dead-after` (1000 ms)",
                "below 1000ms",
            ],
        ),
        (
            "heartbeat { interval 300ms; warn-after 200ms; }",
            ["`warn-after` (200 ms) is not longer than", "above 300ms"],
        ),
        (
            "heartbeat { interval 1s; dead-after 2100ms; lease 3500ms; }",
            [
                "`lease` (3500 ms) is shorter than four times `interval` (1000 ms)",
                "at least 4000ms",
            ],
        ),
        (
            "heartbeat { dead-after 1s; lease 1300ms; }",
            [
                "completions stop 325 ms before its end, and `dead-after` and one `interval` \
                 (1162 ms)",
                "write `lease` of at least 1550ms",
            ],
        ),
        (
            "heartbeat { dead-after 3s; lease 3s; }",
            ["`lease` (3000 ms) is too short", "at least 3750ms"],
        ),
        (
            "heartbeat { boot-wait 900ms; }",
            ["`boot-wait` (900 ms) is shorter than", "at least 1000ms"],
        ),
        (
            "heartbeat { lease 1s; } watchdog /dev/watchdog0;",
            [
                "a watchdog of 1000 ms is not shorter than `lease` minus its margin (750 ms)",
                "write `lease` of at least 2000ms",
            ],
        ),
        (
            "heartbeat { lease 3s; } watchdog /dev/watchdog0 timeout 3s;",
            ["watchdog of 3000 ms", "at least 4000ms"],
        ),
        (
            "heartbeat { interval 1; }",
            [
                "1 is out of range: 20 to 10000 milliseconds",
                "in the range",
            ],
        ),
    ] {
        refused_once(&cluster(body), &parts);
    }
    // What the help says is enough.
    parse(&cluster("heartbeat { dead-after 1s; lease 1550ms; }"));
    parse(&cluster("heartbeat { dead-after 3s; lease 3750ms; }"));
    parse(&cluster(
        "heartbeat { lease 4s; } watchdog /dev/watchdog0 timeout 3s;",
    ));
}

#[test]
fn a_watchdog_is_as_long_as_the_lease_lets_it() {
    let timeout = |body: &str| {
        let watchdog = parse(&cluster(body)).cluster.watchdog.unwrap();
        watchdog.timeout.as_secs()
    };
    assert_eq!(timeout("watchdog /dev/watchdog0;"), 2);
    assert_eq!(
        timeout("heartbeat { lease 3500ms; } watchdog /dev/watchdog0;"),
        2
    );
    assert_eq!(
        timeout("heartbeat { lease 10s; } watchdog /dev/watchdog0;"),
        9
    );
    let config = parse(&cluster("watchdog /dev/watchdog0 timeout 10s;"));
    assert_eq!(config.cluster.heartbeat.lease, Duration::from_secs(11));
    refused_once(
        &cluster("watchdog /dev/watchdog0 timeout 1500ms;"),
        &["`1500ms` is not a whole number of seconds"],
    );
}

#[test]
fn there_is_one_third_vote() {
    let arbiter = |body: &str| parse(&cluster(body)).cluster.arbiter;
    assert_eq!(arbiter(""), Arbiter::Manual);
    assert_eq!(arbiter("mode manual;"), Arbiter::Manual);
    assert_eq!(
        arbiter(&format!("{NODES} mode unsafe-two-node;")),
        Arbiter::UnsafeTwoNode
    );
    assert_eq!(
        arbiter("fence-command \"/sbin/fence it\" timeout 90s;"),
        Arbiter::Fence(FenceCommand {
            command: "/sbin/fence it".to_owned(),
            timeout: Duration::from_secs(90)
        })
    );
    let Arbiter::Witness(witness) = arbiter("witness gamma { address [fd00::3]:7795; }") else {
        panic!("no witness");
    };
    assert_eq!(witness.name.value, "gamma");
    assert_eq!(witness.address.value.to_string(), "[fd00::3]:7795");
    for (body, parts) in [
        (
            "mode manual; fence-command x;",
            [
                "a second answer to who has the third vote",
                "first is at f:1:11",
            ],
        ),
        (
            "witness a { address 10.0.0.3:7795; } witness b { address 10.0.0.4:7795; }",
            ["a second answer", "keep one of"],
        ),
        ("witness a { }", ["witness a has no `address`", "IP:PORT"]),
        (
            "fence-command x timeout 0;",
            ["0 is out of range: 1 to 600 seconds", "help: "],
        ),
        (
            "fence-command x timout 5s;",
            ["`timout` is not one of timeout", "did you mean `timeout`?"],
        ),
        ("fence-command x timeout;", ["`timeout` needs a value", ""]),
        ("mode automatic;", ["one of manual, unsafe-two-node", ""]),
        (
            "witnes x { }",
            ["unknown statement", "did you mean `witness`?"],
        ),
        (
            "heartbeat { intervall 1s; }",
            ["`intervall`", "`interval`?"],
        ),
    ] {
        refused_once(&cluster(body), &parts);
    }
}

#[test]
fn members_are_nodes_that_hear_each_other() {
    let managed = |body: &str| {
        pair(
            &format!("cluster {{ {body} }}"),
            "failover { vip 10.0.0.100/24 dev eth0; }",
        )
        .replace(".1:7789;  }", ".1:7789; node-id 0; }")
        .replace(".2:7789;  }", ".2:7789; node-id 1; }")
    };
    let good = format!("{NODES} {WITNESS}");
    parse(&managed(&good));
    for (from, to, parts) in [
        (
            "node beta",
            "node gamma",
            ["host beta is no `node` of the cluster", "add `node NAME"],
        ),
        (
            "path 10.0.0.2:7794;",
            "",
            ["node beta has no `path`", "add `path IP:PORT;`"],
        ),
        (
            "10.0.0.2:7794",
            "[fd00::2]:7794",
            [
                "the paths of nodes alpha and beta do not lead",
                "same family",
            ],
        ),
        (
            "10.0.0.2:7794",
            "10.0.0.1:7794",
            [
                "10.0.0.1:7794 is used twice: by a path of node beta",
                "node alpha at f:1:",
            ],
        ),
        (
            "10.0.0.2:7794",
            "10.0.0.2:7789",
            [
                "by a path of node beta, and by resource r0 on beta",
                "own port",
            ],
        ),
        (
            "10.0.0.3:7795",
            "10.0.0.2:7794",
            ["by witness gamma, and by a path of node beta", "own port"],
        ),
        (
            "10.0.0.3:7795",
            "10.0.0.1:7789",
            ["by witness gamma, and by resource r0 on alpha", "own port"],
        ),
        (
            "node-id 1;",
            "",
            [
                "node beta of the cluster has no `node-id`",
                "write `node-id",
            ],
        ),
        (
            "10.0.0.2:7794",
            "10.0.0.2:7794 dev x/y",
            ["`x/y` is not the name of a network interface", ""],
        ),
        (
            "10.0.0.2:7794",
            "10.0.0.2",
            ["bad address `10.0.0.2`: no port", ""],
        ),
    ] {
        assert!(good.contains(from), "{from}");
        // The name of the witness is that of a node in one of them, which is another fault.
        let text = managed(&good.replace(from, to)).replace("witness gamma", "witness delta");
        let parts = parts.map(|part| part.replace("gamma", "delta"));
        refused_once(&text, &parts.each_ref().map(|part| part.as_str()));
    }
    refused_once(
        &managed(&good.replace("gamma", "beta")),
        &["witness beta is one of the nodes", "third machine"],
    );
    refused_once(
        &cluster("node gamma { node-id 5; } node delta { node-id 5; }"),
        &["of the cluster both have node-id 5", "an id of its own"],
    );
    // By hand nobody needs to be heard.
    parse(&managed("mode manual;"));
    // An id that the `on` section contradicts.
    let text = managed(&good).replace(".1:7789; node-id 0;", ".1:7789; node-id 7;");
    refused_once(
        &text,
        &["host alpha has node-id 7 here and 0 in the `cluster`"],
    );
}

#[test]
fn failover_without_a_vote_is_told() {
    let config = parse(&pair(
        "cluster { key-file /k; }",
        "failover { vip 10.0.0.100/24 dev eth0; }",
    ));
    assert_eq!(config.warnings.len(), 1);
    let text = config.warnings[0].to_string();
    assert!(text.contains("there is no third vote"), "{text}");
    let quiet = with_failover("vip 10.0.0.100/24 dev eth0;");
    let warnings = parse(&quiet).warnings;
    assert!(warnings.iter().all(|w| !w.to_string().contains("vote")));
    // Nothing moves by itself here either, and nothing is expected to.
    let policy = parse(&pair("", "failover { start-policy manual; }"));
    assert!(!policy.resources[0].failover.as_ref().unwrap().acts());
    assert_eq!(policy.warnings.len(), 1);
}

#[test]
fn steps_keep_the_order_of_the_file() {
    let plan = failover(
        "vip fd00::100/64 dev eth0; service web { start \"a b\"; stop c; check d; interval 2s; }
         mount /srv/ volume 0; run feed { unit feed@x.service; } vip 10.0.0.100/24 dev br-0.5;",
    );
    let names: Vec<String> = plan
        .steps
        .iter()
        .map(|step| format!("{} {}", step.kind(), step.name()))
        .collect();
    assert_eq!(
        names,
        [
            "vip fd00::100",
            "service web",
            "mount /srv",
            "run feed",
            "vip 10.0.0.100"
        ]
    );
    let Step::Service(web) = &plan.steps[1].value else {
        panic!("no service");
    };
    assert_eq!(
        web.control,
        Control::Commands {
            start: "a b".to_owned(),
            stop: "c".to_owned()
        }
    );
    assert_eq!(web.options.interval, Duration::from_secs(2));
    assert_eq!(web.options.timeout, Duration::from_secs(5));
    assert_eq!(
        (web.options.rise, web.options.fall, web.options.restarts),
        (1, 2, 3)
    );
    let Step::Mount(mount) = &plan.steps[2].value else {
        panic!("no mount");
    };
    assert_eq!(
        (mount.fstype.as_str(), mount.options.as_str(), mount.fsck),
        ("auto", "defaults", Fsck::Auto)
    );
}

#[test]
fn the_default_stop_ladder_is_below_half_a_minute() {
    let ladder = failover("group g;").stop_ladder;
    assert!(ladder.total() < Duration::from_secs(30));
    assert_eq!(ladder.then, LastResort::FailIo);
    let ladder = failover("stop-ladder { services 1m; then fence; }").stop_ladder;
    assert_eq!(ladder.services, Duration::from_secs(60));
    assert_eq!(ladder.then, LastResort::Fence);
}

#[test]
fn a_returning_host_is_preferred_or_not() {
    assert_eq!(failover("failback never;").failback, Failback::Never);
    let plan = failover("preferred beta; failback when-stable 5m;");
    assert_eq!(
        plan.failback,
        Failback::WhenStable(Duration::from_secs(300))
    );
    assert_eq!(plan.preferred.unwrap().value, "beta");
}

#[test]
fn bad_failover_sections_say_what_is_wrong() {
    for (body, part) in [
        (
            "preferred gamma;",
            "`preferred gamma` is not one of its hosts",
        ),
        ("failback when-stable 5m;", "without `preferred`"),
        (
            "failback when-stable;",
            "`failback when-stable` needs a time",
        ),
        (
            "failback never 5m;",
            "unexpected `5m` after `failback never`",
        ),
        ("failback always;", "not one of never, when-stable"),
        ("vip 10.0.0.100 dev eth0;", "is not ADDRESS/PREFIX"),
        (
            "vip 10.0.0.100/33 dev eth0;",
            "prefix 33 is out of range: 1 to 32",
        ),
        ("vip 10.0.0.100/0 dev eth0;", "prefix 0 is out of range"),
        ("vip fd00::1/129 dev eth0;", "out of range: 1 to 128"),
        ("vip fd00::1/999 dev eth0;", "out of range: 1 to 128"),
        ("vip 10.0.0.0/24 dev eth0;", "is not the address of a host"),
        (
            "vip 10.0.0.255/24 dev eth0;",
            "is not the address of a host",
        ),
        ("vip 224.0.0.5/24 dev eth0;", "is not the address of a host"),
        ("vip 10.0.0.100/24;", "needs ADDRESS/PREFIX dev INTERFACE"),
        (
            "vip 10.0.0.100/24 dev averylongifname0;",
            "network interface",
        ),
        ("vip 10.0.0.100/24 on eth0;", "`on` is not one of dev"),
        (
            "vip 10.0.0.1/24 dev eth0;",
            "10.0.0.1 is that of resource r0 on alpha",
        ),
        (
            "vip 10.0.0.9/24 dev a; vip 10.0.0.9/16 dev b;",
            "step 10.0.0.9 is given twice",
        ),
        ("mount srv volume 0;", "path `srv` is not absolute"),
        ("mount / volume 0;", "is not a folder below `/`"),
        ("mount /srv/../etc;", "is not a folder below `/`"),
        ("mount /srv volume 3;", "there is no volume 3 to mount"),
        ("mount /srv volume x;", "not a number from 0 to 65535"),
        ("mount /srv fsck maybe;", "not one of auto, no, force"),
        ("mount /srv fstyp ext4;", "did you mean `fstype`?"),
        ("mount /srv fstype \"ext4 -o x\";", "one word as `mount`"),
        ("mount /srv fsck no fsck no;", "`fsck` is given twice"),
        ("mount /srv; mount //srv/;", "step /srv is given twice"),
        ("service web { start x; }", "`web` needs `start` and `stop`"),
        ("service web { }", "`web` needs `start` and `stop`"),
        (
            "service web { start x; stop y; unit z; }",
            "`web` needs `start` and `stop`, or `unit` alone",
        ),
        (
            "service web { unit \"a b\"; }",
            "is not the name of a systemd unit",
        ),
        (
            "service web { unit x; start-timeout 3; }",
            "unknown statement",
        ),
        (
            "service web { unit x; fall 0; }",
            "0 is out of range: 1 to 100",
        ),
        (
            "service web { unit x; interval 1h; timeout 1h; }",
            "`timeout`: 1h is out",
        ),
        ("service web { unit x; check \" \"; }", "` ` is not a text"),
        ("service \"a b\" { unit x; }", "bad name"),
        (
            "service x { unit x; } run x { unit y; }",
            "step x is given twice",
        ),
        ("monitor { }", "`monitor` looks at nothing"),
        ("monitor { fall 3; }", "`monitor` looks at nothing"),
        ("monitor { ping host; }", "is not the IP address of a host"),
        ("monitor { ping; }", "`ping` needs a value"),
        (
            "monitor { interface a; } monitor { interface a; }",
            "section `monitor` is given twice",
        ),
        ("stop-ladder { then reboot; }", "not one of fail-io, fence"),
        ("group a; group b;", "`group` is given twice"),
        ("grup a;", "did you mean `group`?"),
    ] {
        refused_once(&with_failover(body), &[part, "help: "]);
    }
    refused_once(
        &pair("", "failover { } failover { }"),
        &["section `failover` is given twice"],
    );
}

#[test]
fn bad_sinks_say_what_is_wrong() {
    for (body, part) in [
        ("exec;", "`exec` needs a command"),
        ("mail \"a b\";", "`a b` is not an address"),
        ("mail \"-f\";", "is not an address"),
        ("mail root via sendmail;", "path `sendmail` is not absolute"),
        ("webhook ftp://x;", "is not an http:// URL"),
        (
            "webhook https://x/;",
            "`webhook https://x/` is not supported",
        ),
        ("syslog local9;", "`local9` is not one of user"),
        ("sms 1;", "unknown statement `sms` in `notify`"),
    ] {
        refused_once(&cluster(&format!("notify {{ {body} }}")), &[part, "help: "]);
    }
}

#[test]
fn an_nbd_export_is_not_mounted() {
    let text = pair_with(
        "",
        "device nbd://127.0.0.1:10809/r0; disk /dev/vg0/r0; failover { mount /srv volume 0; }",
        "",
    );
    refused_once(&text, &["f:3:63: resource r0: volume 0 is an NBD export"]);
}

#[test]
fn resources_share_no_address_and_no_mount_point() {
    let two = |first: &str, second: &str| {
        let resource = |body: &str| pair("", &format!("failover {{ {body} }}"));
        let other = resource(second)
            .replace("r0", "r1")
            .replace("7789", "7790")
            .replace("ublkb0", "ublkb1");
        resource(first) + &other
    };
    parse(&two(
        "mount /a; vip 10.0.0.8/24 dev e;",
        "mount /b; vip 10.0.0.9/24 dev e;",
    ));
    refused_once(
        &two("vip 10.0.0.8/24 dev e;", "vip 10.0.0.8/16 dev f;"),
        &["10.0.0.8 is used twice: by resource r1, and by resource r0"],
    );
    refused_once(
        &two("mount /a;", "mount /a;"),
        &["mount point /a is used twice on host alpha"],
    );
    parse(&two("group g; preferred beta;", "group g;"));
    refused_once(
        &two("group g; preferred beta;", "group g; preferred alpha;"),
        &["resources r0 and r1 prefer different hosts"],
    );
    let apart = two("group g;", "group g;");
    let at = apart.rfind("on beta").unwrap();
    let apart = format!("{}on gamma{}", &apart[..at], &apart[at + "on beta".len()..]);
    refused_once(
        &apart,
        &["group g: resources r0 and r1 have different hosts"],
    );
}

#[test]
fn a_refused_section_says_nothing_about_others() {
    // The path is missing because its statement is misspelt: one message.
    let message = refused(&pair(
        "cluster { node alpha { node-id 0; pth 10.0.0.1:7794; } node beta { node-id 1; }
         mode unsafe-two-node; }",
        "failover { }",
    ));
    assert_eq!(message.matches("error: ").count(), 1, "{message}");
}

#[test]
fn every_facility_has_its_code() {
    assert_eq!(Facility::named("local0").map(|f| f.code), Some(16));
    assert_eq!(Facility::named("local7").map(|f| f.code), Some(23));
    assert_eq!(Facility::named("kern"), None);
}

#[test]
fn times_that_follow_can_be_written() {
    // What is derived is inside the ranges and keeps the rules, or the written values break one.
    let options = [
        ("interval", vec![20, 333, 10_000]),
        ("warn-after", vec![30, 777, 60_000]),
        ("dead-after", vec![50, 1001, 120_000]),
        ("lease", vec![200, 1003, 300_000]),
        ("boot-wait", vec![50, 600_000]),
    ];
    let mut texts = vec![String::new()];
    for (name, values) in &options {
        let more: Vec<String> = texts
            .iter()
            .flat_map(|text| values.iter().map(move |v| format!("{text}{name} {v};")))
            .collect();
        texts.extend(more);
    }
    let mut good = 0;
    for text in texts {
        let whole = cluster(&format!("heartbeat {{ {text} }}"));
        match Config::parse_str("f", &whole) {
            Ok(config) => {
                good += 1;
                let again = Config::parse_str("dump", &dump::text(&config));
                assert_eq!(Ok(&config), again.as_ref(), "{text}");
            }
            Err(errors) => {
                let written = text.matches(';').count();
                // The default of `dead-after` does not follow how long a boot waits.
                let alone = written > 1 || text == "boot-wait 50;";
                assert!(alone, "{}", errors[0]);
                assert!(matches!(*errors[0].kind, DiagnosticKind::Timers(_)));
            }
        }
    }
    assert!(good > 100, "{good}");
}
