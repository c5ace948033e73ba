//! A pair of nodes with everything of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::nbd::Nbd;
use crate::node::{Node, Ran, own_addresses, wait_until};

/// Long enough for a resync on a loaded machine.
pub const SYNC: &str = "60";

/// How clients reach the volumes.
#[derive(Clone, Copy)]
pub enum Front {
    Unix,
    Tcp,
}

/// Where the metadata is.
#[derive(Clone, Copy)]
pub enum Meta {
    Internal,
    /// A file for each volume.
    File,
    /// The same, written as `FILE[0]`.
    Indexed,
}

/// Room for the metadata of the volumes that tests use.
const META_BYTES: u64 = 1 << 20;
/// Of volume 0; the others follow.
const NBD_PORT: u16 = 10809;

/// How a pair is made. The defaults are those of the product wherever a test says nothing.
#[derive(Clone)]
pub struct Plan {
    /// Bytes of each backing file.
    pub size: u64,
    /// Volumes of the resource, counted from 0.
    pub volumes: u16,
    pub front: Front,
    pub meta: Meta,
    /// Further words of the `net` section.
    pub net: String,
    /// A witness votes, and the nodes take over by themselves.
    pub cluster: bool,
    /// Words before the resource, further words of the resource, and of volumes.
    pub top: String,
    pub more: String,
    pub volume_words: BTreeMap<u16, String>,
    /// Addresses with port of alpha and beta; unique ones of the loopback network if `None`.
    pub addresses: Option<[String; 2]>,
    pub namespaces: Option<[String; 2]>,
    /// Disks and metadata that lie elsewhere and are there already, by the name that they would
    /// have in the pair's directory: `alpha.img`, `beta-1.img`, `alpha-0.meta`.
    pub files: BTreeMap<&'static str, PathBuf>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            size: 64 << 20,
            volumes: 1,
            front: Front::Unix,
            meta: Meta::Internal,
            net: "timeout 9; connect-int 1;".to_owned(),
            cluster: false,
            top: String::new(),
            more: String::new(),
            volume_words: BTreeMap::new(),
            addresses: None,
            namespaces: None,
            files: BTreeMap::new(),
        }
    }
}

/// Two nodes. Their processes end, and their files go, when this is dropped.
pub struct Pair {
    pub alpha: Node,
    pub beta: Node,
    pub plan: Plan,
    // Last: the directory goes when nobody uses it any more.
    pub dir: TempDir,
}

impl Pair {
    /// Files and configuration; nothing runs and no metadata is made.
    pub fn files(mut plan: Plan) -> Pair {
        let dir = tempfile::Builder::new()
            .prefix("lockstep-process-")
            .tempdir()
            .expect("dir");
        plan.addresses.get_or_insert_with(own_addresses);
        let config = dir.path().join("lockstep.conf");
        let mut pair = Pair {
            alpha: Node::new(dir.path(), "alpha", &config),
            beta: Node::new(dir.path(), "beta", &config),
            plan,
            dir,
        };
        if let Some([alpha, beta]) = pair.plan.namespaces.clone() {
            pair.alpha.namespace = Some(alpha);
            pair.beta.namespace = Some(beta);
        }
        std::fs::write(&config, pair.configuration()).expect("config");
        if pair.plan.cluster {
            pair.alpha.run(&["keygen"]).ok();
        }
        for name in ["alpha", "beta"] {
            for volume in 0..pair.plan.volumes {
                pair.make(&pair.disk_of(name, volume), pair.plan.size);
                if !matches!(pair.plan.meta, Meta::Internal) {
                    pair.make(&pair.meta_of(name, volume), META_BYTES);
                }
            }
        }
        pair
    }

    /// An empty file, unless it lies elsewhere.
    fn make(&self, path: &Path, bytes: u64) {
        if path.starts_with(self.dir.path()) {
            let image = File::create(path).expect("image");
            image.set_len(bytes).expect("size");
        }
    }

    /// Metadata is there and both agents run.
    pub fn started(plan: Plan) -> Pair {
        Pair::files(plan).start()
    }

    /// Makes the metadata and starts both agents.
    pub fn start(mut self) -> Pair {
        for node in [&mut self.alpha, &mut self.beta] {
            node.run(&["create-md", "r0"]).ok();
            node.start_agent();
        }
        self
    }

    /// Set up by the book: alpha is primary, both copies are up to date.
    pub fn in_sync(plan: Plan) -> Pair {
        Pair::started(plan).sync()
    }

    /// Makes alpha primary, and waits until beta has all.
    pub fn sync(self) -> Pair {
        connected(&self.alpha);
        self.alpha.run(&["primary", "r0", "--force"]).ok();
        synced(&self.alpha);
        self
    }

    /// Writes the configuration of a changed plan.
    pub fn reconfigure(&mut self, edit: impl FnOnce(&mut Plan)) {
        edit(&mut self.plan);
        std::fs::write(&self.alpha.config, self.configuration()).expect("config");
    }

    pub fn configuration(&self) -> String {
        let [alpha, beta] = self.plan.addresses.as_ref().expect("set");
        let failover = if self.plan.cluster {
            "    failover { }\n"
        } else {
            ""
        };
        format!(
            "{}resource r0 {{
    net {{ shared-secret \"a secret of the test\"; {} }}
    {}
{}{}{failover}}}
",
            self.cluster() + &self.plan.top,
            self.plan.net,
            self.plan.more,
            self.host("alpha", alpha, 0),
            self.host("beta", beta, 1)
        )
    }

    /// Where the witness listens: beside alpha.
    pub fn witness_address(&self) -> String {
        format!("{}:7795", self.ip(0))
    }

    fn ip(&self, node: usize) -> String {
        let addresses = self.plan.addresses.as_ref().expect("set");
        let (ip, _) = addresses[node].rsplit_once(':').expect("an address");
        ip.to_owned()
    }

    fn cluster(&self) -> String {
        if !self.plan.cluster {
            return String::new();
        }
        format!(
            "cluster {{
    key-file {};
    heartbeat {{ interval 100ms; dead-after 500ms; lease 1s; boot-wait 3s; }}
    node alpha {{ node-id 0; path {}:7794; }}
    node beta {{ node-id 1; path {}:7794; }}
    witness gamma {{ address {}; }}
}}
",
            self.dir.path().join("cluster.key").display(),
            self.ip(0),
            self.ip(1),
            self.witness_address(),
        )
    }

    fn host(&self, name: &'static str, address: &str, id: u8) -> String {
        let volumes: String = (0..self.plan.volumes)
            .map(|volume| {
                let meta = self.meta_of(name, volume);
                let meta = match self.plan.meta {
                    Meta::Internal => "internal".to_owned(),
                    Meta::File => meta.display().to_string(),
                    Meta::Indexed => format!("{}[0]", meta.display()),
                };
                let words = self.plan.volume_words.get(&volume);
                let words = words.map_or("", String::as_str);
                format!(
                    "        volume {volume} {{ device {}; disk {}; meta-disk {meta}; {words} }}\n",
                    self.uri_of(name, volume),
                    self.disk_of(name, volume).display(),
                )
            })
            .collect();
        format!(
            "    on {name} {{
        address {address};
        node-id {id};
{volumes}    }}
"
        )
    }

    pub fn node(&self, name: &str) -> &Node {
        if name == "alpha" {
            &self.alpha
        } else {
            &self.beta
        }
    }

    /// The backing disk of volume 0.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.disk_of(name, 0)
    }

    pub fn disk_of(&self, name: &str, volume: u16) -> PathBuf {
        match volume {
            0 => self.file(&format!("{name}.img")),
            _ => self.file(&format!("{name}-{volume}.img")),
        }
    }

    /// The file with a volume's external metadata.
    pub fn meta_of(&self, name: &str, volume: u16) -> PathBuf {
        self.file(&format!("{name}-{volume}.meta"))
    }

    fn file(&self, name: &str) -> PathBuf {
        let own = || self.dir.path().join(name);
        self.plan.files.get(name).cloned().unwrap_or_else(own)
    }

    /// Where the NBD server of a node's volume 0 listens.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.socket_of(name, 0)
    }

    pub fn socket_of(&self, name: &str, volume: u16) -> PathBuf {
        match volume {
            0 => self.dir.path().join(format!("{name}.nbd")),
            _ => self.dir.path().join(format!("{name}-{volume}.nbd")),
        }
    }

    pub fn uri(&self, name: &str) -> String {
        self.uri_of(name, 0)
    }

    fn uri_of(&self, name: &str, volume: u16) -> String {
        match self.plan.front {
            Front::Unix => format!(
                "nbd+unix:///r0?socket={}",
                self.socket_of(name, volume).display()
            ),
            Front::Tcp => {
                let addresses = self.plan.addresses.as_ref().expect("set");
                let own = &addresses[usize::from(name != "alpha")];
                let ip = own.split(':').next().expect("an address");
                format!("nbd://{ip}:{}/r0", NBD_PORT + volume)
            }
        }
    }

    /// A connection to volume 0 of `name`, which must be primary.
    pub fn nbd(&self, name: &str) -> Nbd {
        self.nbd_of(name, 0)
    }

    pub fn nbd_of(&self, name: &str, volume: u16) -> Nbd {
        Nbd::patiently(&self.socket_of(name, volume))
    }

    /// Compares the data areas of both disks of every volume, which must be quiet.
    pub fn assert_identical(&self) {
        for volume in 0..self.plan.volumes {
            self.assert_volume_identical(volume);
        }
    }

    fn assert_volume_identical(&self, volume: u16) {
        let size = status(&self.alpha)["devices"][usize::from(volume)]["size"].as_u64();
        let mut left = size.expect("a size") * 1024;
        assert!(left > 0, "no size");
        let open = |name| File::open(self.disk_of(name, volume)).expect("opens");
        let (mut a, mut b) = (open("alpha"), open("beta"));
        let (mut mine, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut at = 0;
        while left > 0 {
            let length = left.min(1 << 20) as usize;
            a.read_exact(&mut mine[..length]).expect("reads");
            b.read_exact(&mut theirs[..length]).expect("reads");
            if mine[..length] != theirs[..length] {
                let first = (0..length)
                    .find(|i| mine[*i] != theirs[*i])
                    .expect("differs");
                panic!("the disks of volume {volume} differ at byte {}", at + first);
            }
            at += length;
            left -= length as u64;
        }
    }
}

/// `status --json` of the resource.
pub fn status(node: &Node) -> Value {
    let text = node.run(&["status", "r0", "--json"]).ok();
    serde_json::from_str::<Value>(&text).expect("json")[0].clone()
}

/// Waits until the status is as wanted; the last one is in the message if it never is.
pub fn wait_status(node: &Node, what: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) {
    let begin = Instant::now();
    loop {
        let now = status(node);
        if wanted(&now) {
            return;
        }
        assert!(
            begin.elapsed() < limit,
            "{}: not in time: {what}\n{now:#}",
            node.name
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An amount of the peer's volume 0, KiB.
pub fn amount(node: &Node, key: &str) -> u64 {
    amount_of(node, 0, key)
}

/// An amount of one of the peer's volumes, KiB.
pub fn amount_of(node: &Node, volume: usize, key: &str) -> u64 {
    status(node)["connections"][0]["peer_devices"][volume][key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key}"))
}

pub fn disk_state(status: &Value) -> &str {
    status["devices"][0]["disk-state"].as_str().unwrap_or("")
}

pub fn link_state(status: &Value) -> &str {
    let link = &status["connections"][0]["connection-state"];
    link.as_str().unwrap_or("")
}

pub fn role(node: &Node) -> String {
    node.run(&["role", "r0"]).out.trim().to_owned()
}

pub fn connected(node: &Node) {
    node.run(&["wait-connect", "r0", "--timeout", SYNC]).ok();
}

pub fn synced(node: &Node) {
    node.run(&["wait-sync", "r0", "--timeout", SYNC]).ok();
}

/// Waits for another data plane than `before`.
pub fn wait_replaced(node: &Node, before: u32) {
    wait_until("another data plane", || {
        node.plane("r0").is_some_and(|now| now != before)
    });
}

/// Runs a program of the machine, for two minutes at most. A missing one is a failure.
pub fn tool(program: &str, package: &str, arguments: &[&str]) -> Ran {
    let output: Output = Command::new("timeout")
        .args(["120", program])
        .args(arguments)
        .output()
        .expect("coreutils are there");
    assert!(
        output.status.code() != Some(127),
        "{program} cannot be run; install the package {package}"
    );
    output.into()
}

/// Text of a path that this test made.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Bytes that do not repeat at any block size.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = random(state);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The next number of a sequence (xorshift).
pub fn random(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    state
}

/// How often something is repeated: `LOCKSTEP_RUNS`, or the number for an ordinary test run.
pub fn runs(ordinary: usize) -> usize {
    match std::env::var("LOCKSTEP_RUNS") {
        Err(_) => ordinary,
        Ok(text) => text.parse().expect("LOCKSTEP_RUNS is a number"),
    }
}
