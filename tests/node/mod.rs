//! One node under test: the real binary with a run directory of its own.

// Every test binary compiles this module and uses its part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before a test fails: generous, for a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Exit code and texts of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// The text, after checking that the command succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Checks that the command failed with `code`, a reason and a next step.
    pub fn failed(self, code: i32, reason: &str) -> Ran {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.starts_with("error: "), "{self:?}");
        assert!(self.err.contains("\nhelp: "), "{self:?}");
        assert!(self.err.contains(reason), "{reason} is not in {self:?}");
        self
    }
}

/// A node: its directories and, while it runs, its agent.
pub struct Node {
    pub name: String,
    pub run_dir: PathBuf,
    pub config: PathBuf,
    /// Network namespace that everything of this node runs in; `None` for this one.
    pub namespace: Option<String>,
    /// Environment of its agent.
    pub variables: Vec<(String, String)>,
    agent: Option<Child>,
}

impl Node {
    /// A node with its run directory below `dir`.
    pub fn new(dir: &Path, name: &str, config: &Path) -> Node {
        Node {
            name: name.to_owned(),
            run_dir: dir.join(name),
            config: config.to_owned(),
            namespace: None,
            variables: Vec::new(),
            agent: None,
        }
    }

    /// The binary as this node, with further words.
    pub fn command(&self, words: &[&str]) -> Command {
        let binary = env!("CARGO_BIN_EXE_lockstep");
        let mut command = match &self.namespace {
            None => Command::new(binary),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, binary]);
                command
            }
        };
        command
            .args(["--node", &self.name, "--config"])
            .arg(&self.config)
            .arg("--run-dir")
            .arg(&self.run_dir)
            .args(words);
        command
    }

    /// Runs a verb to its end.
    pub fn run(&self, words: &[&str]) -> Ran {
        self.command(words).output().expect("starts").into()
    }

    /// Starts the agent and waits until it answers.
    pub fn start_agent(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.run_dir.with_extension("log"))
            .expect("log");
        let mut command = self.command(&["agent"]);
        command.envs(self.variables.iter().cloned());
        self.agent = Some(command.stderr(Stdio::from(log)).spawn().expect("starts"));
        wait_until("the agent answers", || self.run(&["status"]).code == 0);
    }

    /// Process id of the agent that this test started.
    pub fn agent(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Ends all processes of the node at once, as a crash of the machine would.
    pub fn crash(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        for pid in self.processes() {
            send_signal(pid, "KILL");
        }
        wait_until("all processes are gone", || self.processes().is_empty());
    }

    /// Living processes that were started with this node's run directory. It is a temporary
    /// directory of the test, so nobody else's processes can name it.
    pub fn processes(&self) -> Vec<u32> {
        let entries = std::fs::read_dir("/proc").expect("proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| *pid != std::process::id() && self.owns(*pid))
            .collect()
    }

    fn owns(&self, pid: u32) -> bool {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|word| word == self.run_dir.as_os_str().as_encoded_bytes())
    }

    /// Sends a signal to the agent and waits for its end.
    pub fn end_agent(&mut self, signal: &str) -> ExitStatus {
        let mut agent = self.agent.take().expect("runs");
        send_signal(agent.id(), signal);
        agent.wait().expect("ends")
    }

    /// Process id of the data plane of `resource`.
    pub fn plane(&self, resource: &str) -> Option<u32> {
        let path = self.run_dir.join(format!("{resource}.pid"));
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().parse().ok()
    }

    /// The agent's log, for messages of failed tests.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.run_dir.with_extension("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name, self.log());
        }
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        for pid in self.processes() {
            send_signal(pid, "KILL");
        }
    }
}

/// Addresses that no other test on this machine uses: the whole of 127.0.0.0/8 is ours to take.
pub fn own_addresses() -> [String; 2] {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    let (high, low) = (100 + (pid >> 8) % 100, pid % 256);
    let next = NEXT.fetch_add(2, Ordering::Relaxed);
    [next, next + 1].map(|host| format!("127.{high}.{low}.{host}:7789"))
}

/// Sends a signal to a process that may have ended.
pub fn send_signal(pid: u32, signal: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// Polls until `reached`, or fails the test.
pub fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !reached() {
        assert!(begin.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
