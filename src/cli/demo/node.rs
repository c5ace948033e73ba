//! One of the demo's two nodes: its agent, its data planes, and the verbs that it is given.
//!
//! Processes are signalled by id and never by name, each only after a descriptor of it was opened
//! and its command line was found to belong to this node's run directory.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::fault::Fault;
use super::stop::Stop;
use crate::agent::view::{DeviceView, PeerDeviceView, ResourceView};
use crate::cli::{Global, client};
use crate::target::ublk::{LeftoverState, RecordDir, UblkControl, fail_device, find_leftovers};

/// How long a verb or a start may take on a machine that is busy with other things.
const VERB: Duration = Duration::from_secs(30);
/// How long a taking down in order may take before the processes are killed.
const IN_ORDER: Duration = Duration::from_secs(10);
/// How long a killed process may take to be gone: it may be in a system call on a slow disk.
const GONE: Duration = Duration::from_secs(5);

/// A node and, while it runs, its agent.
pub struct Node {
    pub name: &'static str,
    global: Global,
    run_dir: PathBuf,
    log: PathBuf,
    program: PathBuf,
    agent: Option<Child>,
    /// Nothing is left to end when this is dropped.
    settled: bool,
}

impl Node {
    /// A node with its run directory in `folder`; nothing is started.
    pub fn new(name: &'static str, folder: &Path, config: &Path) -> Result<Node, Fault> {
        let run_dir = folder.join(name);
        Ok(Node {
            name,
            global: Global {
                config: Some(config.to_owned()),
                node: Some(name.to_owned()),
                run_dir: Some(run_dir.clone()),
                state_dir: None,
                json: false,
            },
            log: folder.join(format!("{name}.log")),
            run_dir,
            program: std::env::current_exe().map_err(Fault::io("my own binary"))?,
            agent: None,
            settled: true,
        })
    }

    /// What the agent and its data planes have to say.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The agent's process id while it runs.
    pub fn agent_id(&self) -> Option<String> {
        self.agent.as_ref().map(|agent| agent.id().to_string())
    }

    /// The words of a shell command that gives this node a verb.
    pub fn shell(&self, verb: &str) -> String {
        let words: Vec<String> = self
            .arguments()
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        format!("{} {} {verb}", self.program.display(), words.join(" "))
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["--node".into(), self.name.into()];
        if let Some(config) = &self.global.config {
            words.extend(["-c".into(), config.into()]);
        }
        words.extend(["--run-dir".into(), self.run_dir.clone().into()]);
        words
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Out of reach of the terminal's Ctrl-C: the demo decides what ends when.
        command
            .args(self.arguments())
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Starts the agent and waits until it answers.
    pub fn start(&mut self, stop: &Stop) -> Result<(), Fault> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(Fault::io(self.log.display().to_string()))?;
        let mut command = self.command();
        command.arg("agent").stdout(Stdio::null()).stderr(log);
        let agent = command
            .spawn()
            .map_err(Fault::io("cannot start an agent"))?;
        self.agent = Some(agent);
        self.settled = false;
        stop.wait(&format!("{}'s agent answers", self.name), VERB, || {
            self.alive()?;
            Ok(client::status(&self.global, "all").ok())
        })?;
        Ok(())
    }

    /// Fails when the agent has ended.
    fn alive(&mut self) -> Result<(), Fault> {
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        match agent.try_wait().map_err(Fault::io("the agent"))? {
            None => Ok(()),
            Some(status) => Err(Fault::AgentEnded {
                node: self.name,
                status,
                last_words: last_line(&fs::read_to_string(&self.log).unwrap_or_default()),
            }),
        }
    }

    /// Carries out a verb through the command line; fails when its exit code is not 0.
    pub fn verb(&self, stop: &Stop, words: &[&str]) -> Result<(), Fault> {
        let mut command = self.command();
        command
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(Fault::io("cannot start a command"))?;
        let waited = stop.wait(&words.join(" "), VERB, || {
            child.try_wait().map_err(Fault::io("a command"))
        });
        let status = match waited {
            Ok(status) => status,
            Err(fault) => {
                // It may have ended meanwhile.
                let _ = child.kill();
                let _ = child.wait();
                return Err(fault);
            }
        };
        if status.success() {
            return Ok(());
        }
        let mut reason = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            // Only for the message.
            let _ = stderr.read_to_string(&mut reason);
        }
        Err(Fault::Verb {
            node: self.name,
            verb: words.join(" "),
            status,
            reason: reason.trim().replace('\n', "; "),
        })
    }

    /// How a resource is on this node.
    pub fn status(&self, resource: &str) -> Result<ResourceView, Fault> {
        let views = client::status(&self.global, resource).map_err(|error| Fault::Status {
            node: self.name,
            reason: error.reason,
        })?;
        let view = views.into_iter().next();
        view.ok_or(self.unsaid("the resource"))
    }

    /// The first volume of a resource, and its replication to the peer.
    pub fn volume(&self, resource: &str) -> Result<(DeviceView, PeerDeviceView), Fault> {
        let view = self.status(resource)?;
        let device = view.devices.into_iter().next();
        let link = view.connections.into_iter().next();
        let peer = link.and_then(|link| link.peer_devices.into_iter().next());
        Ok((
            device.ok_or(self.unsaid("a volume"))?,
            peer.ok_or(self.unsaid("the peer's volume"))?,
        ))
    }

    fn unsaid(&self, what: &'static str) -> Fault {
        Fault::Unsaid {
            node: self.name,
            what,
        }
    }

    /// Kills the agent and every data plane at once, and waits until they are gone. Returns how
    /// many there were.
    pub fn kill(&mut self) -> Result<usize, Fault> {
        let mut killed = 0;
        if let Some(mut agent) = self.agent.take() {
            // First, because it would start again what dies before it.
            agent.kill().map_err(Fault::io("cannot kill an agent"))?;
            killed += 1;
            let planes = self.planes();
            for plane in &planes {
                killed += usize::from(plane.kill());
            }
            agent.wait().map_err(Fault::io("a killed agent"))?;
        }
        // Including one that the agent started in its last moment.
        for plane in self.planes() {
            plane.kill();
            plane.ended(GONE);
        }
        Ok(killed)
    }

    /// Takes the node down in order; what does not end by itself is killed, and its block devices
    /// are removed.
    pub fn end(&mut self) -> Result<(), Fault> {
        if let Some(agent) = &mut self.agent {
            let pid = i32::try_from(agent.id()).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                // It may have ended by itself; not reaped, its number is still its own.
                let _ = rustix::process::kill_process(pid, Signal::TERM);
            }
            let deadline = Instant::now() + IN_ORDER;
            while Instant::now() < deadline && !matches!(agent.try_wait(), Ok(Some(_))) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.settled = true;
        self.kill()?;
        self.remove_devices()
    }

    /// Leaves the node running when the demo ends.
    pub fn keep(mut self) {
        self.settled = true;
    }

    /// Removes block devices whose data plane died without a successor.
    fn remove_devices(&self) -> Result<(), Fault> {
        let dir = self.global.dirs().device_records();
        if !dir.exists() {
            return Ok(());
        }
        let (records, _) = RecordDir::open(&dir)?.load()?;
        if records.is_empty() {
            return Ok(());
        }
        let mut control = UblkControl::open()?;
        for leftover in find_leftovers(&mut control, records)? {
            match leftover.state {
                LeftoverState::Orphaned | LeftoverState::Stopped => {
                    fail_device(&mut control, &leftover.record, GONE)?;
                }
                LeftoverState::Gone | LeftoverState::Foreign => {}
                // Every process of the node is dead.
                LeftoverState::Served { .. } => {}
            }
        }
        Ok(())
    }

    /// The living data planes of this node.
    fn planes(&self) -> Vec<Process> {
        let entries = fs::read_dir(&self.run_dir).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
            .filter_map(|path| Process::of_pid_file(&path, &self.run_dir))
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.settled {
            // The way out of a failure; it was told already.
            let _ = self.end();
        }
    }
}

/// A data plane, held by a descriptor that means this very process.
struct Process {
    pidfd: OwnedFd,
}

impl Process {
    /// The process that a pid file names, if it lives and serves for `run_dir`.
    fn of_pid_file(path: &Path, run_dir: &Path) -> Option<Process> {
        let number = fs::read_to_string(path).ok()?;
        let number: u32 = number.trim().parse().ok()?;
        let pid = Pid::from_raw(i32::try_from(number).ok()?)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
        let mut words = command.split(|byte| *byte == 0);
        let is_ours = words.any(|word| word == run_dir.as_os_str().as_bytes());
        is_ours.then_some(Process { pidfd })
    }

    /// Whether the signal reached it.
    fn kill(&self) -> bool {
        rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok()
    }

    /// Waits until it is gone.
    fn ended(&self, limit: Duration) {
        let Ok(limit) = Timespec::try_from(limit) else {
            return;
        };
        let mut waited = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // A signal for the demo ends the wait early; what follows does not depend on it.
        let _ = rustix::event::poll(&mut waited, Some(&limit));
    }
}

fn last_line(text: &str) -> String {
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or("its log is empty").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_of_the_run_directory_are_found() {
        let dir = tempfile::tempdir().expect("dir");
        let mine = dir.path().join("mine.pid");
        fs::write(&mine, std::process::id().to_string()).expect("writes");
        // This test runs, but not for that directory.
        assert!(Process::of_pid_file(&mine, dir.path()).is_none());
        let mut child = Command::new("sleep");
        let mut child = child.arg("60").arg0("serve").spawn().expect("starts");
        fs::write(&mine, child.id().to_string()).expect("writes");
        // A process that is just being started has no command line for a moment.
        let process = (0..1000).find_map(|_| {
            std::thread::sleep(Duration::from_millis(5));
            Process::of_pid_file(&mine, Path::new("60"))
        });
        let process = process.expect("found");
        assert!(process.kill());
        process.ended(GONE);
        assert!(!child.wait().expect("ends").success());
        for bad in ["", "x", "0", "-7", "99999999999"] {
            fs::write(&mine, bad).expect("writes");
            assert!(Process::of_pid_file(&mine, dir.path()).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_last_words_are_the_last_line_with_words() {
        assert_eq!(last_line("a\nb \n\n"), "b");
        assert_eq!(last_line(""), "its log is empty");
    }
}
