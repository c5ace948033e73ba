//! A pair of nodes on this machine: the real program, one agent per node, files as disks.
//!
//! [`Pair`] owns the directory with everything in it and the agents; dropping it takes the
//! resource down, ends the agents and removes the directory.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::disk;
use crate::error::BenchError;
use crate::plan::{Protocol, Transport};

/// The name of resource and export.
pub const RESOURCE: &str = "bench";

/// What internal metadata may take beside the data; a backing file is this much larger.
const METADATA: u64 = 8 << 20;

/// How long starting and ending may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a process that is measured.
pub const LOOK: Duration = Duration::from_millis(20);

/// For `--timeout` of commands that wait.
const SYNC_SECONDS: &str = "300";

/// The nodes; the first is primary.
pub const NODES: [&str; 2] = ["alpha", "beta"];

/// What a pair is made of.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The `lockstep` program.
    pub program: &'a Path,
    /// Where its directory is made.
    pub below: &'a Path,
    /// About so many bytes has the volume.
    pub size: u64,
    pub protocol: Protocol,
    pub transport: Transport,
    /// What blocks are compared with in a verify.
    pub verify_alg: &'a str,
}

/// Two connected nodes; alpha is primary.
pub struct Pair {
    program: PathBuf,
    agents: Vec<Child>,
    /// Last, so that it is removed after the agents have ended.
    dir: TempDir,
}

impl Pair {
    /// Starts a pair in a new directory, and waits until both copies are up to date.
    pub fn start(wish: Wish) -> Result<Pair, BenchError> {
        let dir = TempDir::with_prefix_in("lockstep-bench-", wish.below)
            .map_err(BenchError::at(wish.below))?;
        let mut pair = Pair {
            program: wish.program.to_owned(),
            agents: Vec::new(),
            dir,
        };
        let config = pair.path("lockstep.conf");
        let text = configuration(pair.dir.path(), free_port()?, wish);
        fs::write(&config, text).map_err(BenchError::at(&config))?;
        for node in NODES {
            disk::create(&pair.path(&format!("{node}.img")), wish.size + METADATA)?;
            pair.run(node, &["create-md", RESOURCE])?;
            pair.start_agent(node)?;
        }
        let [alpha, beta] = NODES;
        pair.run(alpha, &["wait-connect", RESOURCE, "--timeout", "60"])?;
        pair.run(alpha, &["primary", RESOURCE, "--force"])?;
        for node in [alpha, beta] {
            pair.run(node, &["wait-sync", RESOURCE, "--timeout", SYNC_SECONDS])?;
        }
        Ok(pair)
    }

    /// Where the primary's export is.
    pub fn socket(&self) -> PathBuf {
        self.path("alpha.nbd")
    }

    /// Checks that both copies are still written.
    pub fn check(&self) -> Result<(), BenchError> {
        let text = self.run(NODES[0], &["status", RESOURCE, "--json"])?;
        let status: Value = serde_json::from_str(&text).map_err(|source| BenchError::Json {
            path: "status --json".into(),
            source,
        })?;
        let peer = &status[0]["connections"][0];
        let device = &peer["peer_devices"][0];
        let state = [
            &peer["connection-state"],
            &status[0]["devices"][0]["disk-state"],
            &device["peer-disk-state"],
        ]
        .map(|state| state.as_str().unwrap_or("unknown"));
        if state == ["Connected", "UpToDate", "UpToDate"] {
            return Ok(());
        }
        Err(BenchError::NotReplicating {
            state: state.join(", "),
        })
    }

    /// Bytes that the data plane of a node has read from and written to disks so far.
    pub fn disk_bytes(&self, node: &str) -> Result<DiskBytes, BenchError> {
        let number = self.plane(node).map_or(0, Pid::as_raw_pid);
        let path = PathBuf::from(format!("/proc/{number}/io"));
        let text = fs::read_to_string(&path).map_err(BenchError::at(&path))?;
        let value = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(": "));
            let (_, value) = lines.find(|(key, _)| *key == name)?;
            value.trim().parse().ok()
        };
        Ok(DiskBytes {
            read: value("read_bytes").unwrap_or_default(),
            written: value("write_bytes").unwrap_or_default(),
        })
    }

    /// The most memory that the data plane of a node ever had, in KiB.
    pub fn peak_kib(&self, node: &str) -> Result<u64, BenchError> {
        let number = self.plane(node).map_or(0, Pid::as_raw_pid);
        let path = PathBuf::from(format!("/proc/{number}/status"));
        let text = fs::read_to_string(&path).map_err(BenchError::at(&path))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Ok(number.unwrap_or_default())
    }

    /// Follows what a node reports.
    pub fn events(&self, node: &str) -> Result<Events, BenchError> {
        let mut child = self
            .command(node, &["events"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(BenchError::at(&self.program))?;
        let output = child.stdout.take();
        let mut events = Events {
            child,
            lines: mpsc::channel().1,
        };
        if let Some(output) = output {
            let (sender, lines) = mpsc::channel();
            events.lines = lines;
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send((Instant::now(), line)).is_err() {
                        return;
                    }
                }
            });
        }
        events.wait("exists -", PATIENCE, || Ok(()))?;
        Ok(events)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, node: &str, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["--node", node, "--config"])
            .arg(self.path("lockstep.conf"))
            .arg("--run-dir")
            .arg(self.path(node))
            .arg("--state-dir")
            .arg(self.path(&format!("{node}.state")))
            .args(words)
            .stdin(Stdio::null());
        command
    }

    /// Runs a verb to its end and returns its output.
    pub fn run(&self, node: &str, words: &[&str]) -> Result<String, BenchError> {
        let output = self
            .command(node, words)
            .output()
            .map_err(BenchError::at(&self.program))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(BenchError::Command {
            words: format!("--node {node} {}", words.join(" ")),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    fn start_agent(&mut self, node: &'static str) -> Result<(), BenchError> {
        let log = self.path(&format!("{node}.log"));
        let file = File::create(&log).map_err(BenchError::at(&log))?;
        let agent = self
            .command(node, &["agent"])
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(BenchError::at(&self.program))?;
        self.agents.push(agent);
        let begin = Instant::now();
        while self.run(node, &["status"]).is_err() {
            let ended = match self.agents.last_mut() {
                Some(agent) => !matches!(agent.try_wait(), Ok(None)),
                None => true,
            };
            if ended || begin.elapsed() > PATIENCE {
                let log = fs::read_to_string(&log).unwrap_or_default();
                return Err(BenchError::Agent { node, log });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Processor time that the data planes have used so far, user and system.
    pub fn cpu(&self) -> Result<[Duration; 2], BenchError> {
        let mut times = [Duration::ZERO; 2];
        for (time, node) in times.iter_mut().zip(NODES) {
            let number = self.plane(node).map_or(0, Pid::as_raw_pid);
            let path = PathBuf::from(format!("/proc/{number}/stat"));
            let text = fs::read_to_string(&path).map_err(BenchError::at(&path))?;
            *time = used(&text).unwrap_or_default();
        }
        Ok(times)
    }

    /// The data plane of a node.
    fn plane(&self, node: &str) -> Option<Pid> {
        let path = self.path(node).join(format!("{RESOURCE}.pid"));
        let text = fs::read_to_string(path).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }
}

/// What a process has moved from and to disks, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskBytes {
    pub read: u64,
    pub written: u64,
}

/// Lines of `lockstep events`, each with the time at which it came.
pub struct Events {
    child: Child,
    lines: mpsc::Receiver<(Instant, String)>,
}

impl Events {
    /// Waits for a line that contains `what`; calls `meanwhile` every few milliseconds.
    pub fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        mut meanwhile: impl FnMut() -> Result<(), BenchError>,
    ) -> Result<Instant, BenchError> {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            match self.lines.recv_timeout(LOOK) {
                Ok((at, line)) if line.contains(what) => return Ok(at),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => meanwhile()?,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Err(BenchError::NeverSeen {
            what: what.to_owned(),
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Both fail when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time in the text of a process's `stat`: the 14th and the 15th value, counted
/// from behind the name, which may contain anything.
fn used(stat: &str) -> Option<Duration> {
    let values: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| values.get(index)?.parse::<u64>().ok();
    let total = ticks(11)? + ticks(12)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_millis(total * 1000 / per_second))
}

impl Drop for Pair {
    fn drop(&mut self) {
        for agent in &self.agents {
            // The agent takes its resources down when it gets this.
            let _ = kill_process(Pid::from_child(agent), Signal::TERM);
        }
        let begin = Instant::now();
        for agent in &mut self.agents {
            while matches!(agent.try_wait(), Ok(None)) && begin.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(20));
            }
            // Both fail when it has ended, as it should have.
            let _ = agent.kill();
            let _ = agent.wait();
        }
        for node in NODES {
            // One that its agent has left behind.
            if let Some(pid) = self.plane(node) {
                // It may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// A port that nobody listens on; another program may take it before the nodes do, which then
/// shows as a pair that does not connect.
fn free_port() -> Result<u16, BenchError> {
    let failed = || BenchError::io("a free port");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    Ok(listener.local_addr().map_err(failed())?.port())
}

fn configuration(dir: &Path, port: u16, wish: Wish) -> String {
    let dir = dir.display();
    let Wish {
        protocol,
        verify_alg,
        ..
    } = wish;
    let transport = match wish.transport {
        Transport::Tcp => "tcp",
    };
    let host = |id: usize, name: &str| {
        format!(
            "    on {name} {{
        address 127.0.0.{}:{port};
        node-id {id};
        device nbd+unix:///{RESOURCE}?socket={dir}/{name}.nbd;
        disk {dir}/{name}.img;
        meta-disk internal;
    }}
",
            id + 1
        )
    };
    let hosts: String = (0..).zip(NODES).map(|(id, name)| host(id, name)).collect();
    format!(
        "resource {RESOURCE} {{
    net {{ protocol {protocol:?}; transport {transport}; verify-alg {verify_alg}; }}
{hosts}}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let hertz = rustix::param::clock_ticks_per_second();
        let stat = format!(
            "77 (a ) b) S 1 2 3 4 5 6 7 8 9 10 {hertz} {} 0 0 20",
            2 * hertz
        );
        assert_eq!(used(&stat), Some(Duration::from_secs(3)));
        assert_eq!(used("77 (short) S 1"), None);
        assert_eq!(used(""), None);
    }
}
