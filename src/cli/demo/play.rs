//! The choreography: what happens in which order, and which promises are checked.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compare::compare;
use super::fault::{Broken, Fault};
use super::front::{Front, FrontError, Place};
use super::latency;
use super::load::{BLOCK, Ledger, Load, Verdict, lay_out};
use super::node::Node;
use super::scene::{MEASURED, NODES, STORY, Scene};
use super::stop::Stop;
use super::story::Story;

/// How long the load runs before the kill.
const LOAD: Duration = Duration::from_secs(4);
/// How long a sync may take on a machine that is busy with other things.
const SYNC: Duration = Duration::from_secs(120);
/// How long connecting, taking over and opening the volume may take.
const CHANGE: Duration = Duration::from_secs(20);
/// How long each protocol is measured.
const MEASURE: Duration = Duration::from_millis(1500);
/// Bytes written on the survivor before the killed node returns.
const CHANGED: u64 = 8 << 20;
/// What may be copied at the return besides what was changed: ranges that were in flight.
const COPY_BESIDES: u64 = 32 << 20;
/// Lines of each log that are shown when the story fails.
const LAST_WORDS: usize = 4;

const KIB: u64 = 1024;
const MIB: u64 = 1 << 20;

/// What the last line reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    acked: u64,
    lost: u64,
    takeover_ms: u128,
    resynced_kib: u64,
    verified_kib: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acked={} lost={} takeover_ms={} resynced_kib={} verified_kib={}",
            self.acked, self.lost, self.takeover_ms, self.resynced_kib, self.verified_kib
        )
    }
}

/// The pair and everything around it. Dropping it ends its processes.
pub struct Play {
    alpha: Node,
    beta: Node,
    scene: Scene,
    stop: Stop,
}

impl Play {
    /// Makes disks and configuration in `folder`; starts nothing.
    pub fn prepare(folder: &Path, bytes: u64, stop: Stop) -> Result<Play, Fault> {
        let scene = Scene::set(folder, bytes)?;
        let [alpha, beta] = NODES.map(|name| Node::new(name, folder, &scene.config()));
        Ok(Play {
            alpha: alpha?,
            beta: beta?,
            scene,
            stop,
        })
    }

    /// The whole story.
    pub fn perform(&mut self, story: &mut Story) -> Result<Figures, Fault> {
        self.begin(story)?;
        let size = self.first_sync(story)?;
        let ledger = Arc::new(Ledger::new(size));
        let load = self.load(story, &ledger)?;
        let (mut front, takeover) = self.takeover(story, &ledger)?;
        let load = self.end_load(load)?;
        let lost = self.check(story, &ledger, &mut front)?;
        let acknowledged = ledger.acknowledged();
        self.change(story, &ledger, &mut front)?;
        let resynced_kib = self.come_back(story, size)?;
        if let Some(load) = load {
            // The device of the killed node is given up, and its writes fail.
            let what = "requests to the killed node's device end";
            self.stop
                .wait(what, CHANGE, || Ok(load.is_over().then_some(())))?;
            let _failed = load.end();
            let late = ledger.acknowledged() - acknowledged - CHANGED / BLOCK as u64;
            if late > 0 {
                return Err(Broken::LateAcknowledgement(late).into());
            }
            story.say("alpha's queued writes have failed, as they must");
        }
        let verified_kib = self.verify(story, &ledger, &mut front, size)?;
        drop(front);
        self.latencies(story)?;
        Ok(Figures {
            acked: ledger.acknowledged(),
            lost,
            takeover_ms: takeover.as_millis(),
            resynced_kib,
            verified_kib,
        })
    }

    fn begin(&mut self, story: &mut Story) -> Result<(), Fault> {
        story.step("two nodes, alpha and beta: create metadata and start the agents");
        self.lay_out(story, 0, STORY)?;
        let resources = MEASURED.map(|(name, _)| name);
        for resource in resources {
            self.lay_out(story, 1, resource)?;
        }
        for node in [&self.alpha, &self.beta] {
            for resource in [STORY].iter().chain(&resources) {
                node.verb(&self.stop, &["create-md", resource])?;
            }
        }
        self.alpha.start(&self.stop)?;
        self.beta.start(&self.stop)?;
        let config = self.scene.config();
        story.say(&format!("configuration {}", config.display()));
        let place = self.place(0, STORY)?.configured();
        story.say(&format!("front end {place}, protocol C"));
        self.connected(STORY)
    }

    /// Puts known content on the disk that will be the source of the initial sync.
    fn lay_out(&self, story: &Story, node: usize, resource: &str) -> Result<(), Fault> {
        let path = self.scene.disk(node, resource);
        let shown = path.display().to_string();
        let disk = File::options().write(true).open(&path);
        let disk = disk.map_err(Fault::io(shown.clone()))?;
        let bytes = disk.metadata().map_err(Fault::io(shown))?.len();
        let bar = story.bar("laid out", bytes / MIB, "MiB");
        lay_out(&disk, bytes, |done| {
            bar.at(done / MIB);
            self.stop.check()
        })
    }

    /// Waits until both nodes see each other.
    fn connected(&self, resource: &str) -> Result<(), Fault> {
        for node in [&self.alpha, &self.beta] {
            let what = format!("{} connects {resource}", node.name);
            self.stop.wait(&what, CHANGE, || {
                let view = node.status(resource)?;
                Ok(view.connected().then_some(()))
            })?;
        }
        Ok(())
    }

    /// Returns the size of the volume in bytes.
    fn first_sync(&self, story: &mut Story) -> Result<u64, Fault> {
        story.step("alpha becomes primary and fills beta: the initial sync");
        let begin = Instant::now();
        self.alpha
            .verb(&self.stop, &["primary", "--force", STORY])?;
        self.sync(story, "copied", &self.alpha, STORY)?;
        let size = self.alpha.volume(STORY)?.0.size * KIB;
        let seconds = begin.elapsed().as_secs_f64().max(0.001);
        let mib = size / MIB;
        let rate = mib as f64 / seconds;
        story.say(&format!("{mib} MiB in {seconds:.1} s, {rate:.0} MiB/s"));
        Ok(size)
    }

    /// Waits until both copies are up to date; shows how far the sync from `source` is.
    fn sync(&self, story: &Story, label: &str, source: &Node, name: &str) -> Result<(), Fault> {
        let run = story.run(label);
        self.stop.wait("both copies are up to date", SYNC, || {
            let view = source.status(name)?;
            let mut peers = view.connections.iter().flat_map(|c| &c.peer_devices);
            if let Some(peer) = peers.next() {
                run.at(peer);
            }
            Ok(view.in_sync().then_some(()))
        })
    }

    fn load(&self, story: &mut Story, ledger: &Arc<Ledger>) -> Result<Load, Fault> {
        story.step("verified writes under load: 8 writers, random blocks of 4 KiB");
        let place = self.place(0, STORY)?;
        let load = Load::begin(place, ledger).map_err(Fault::front("cannot open the volume"))?;
        let begin = Instant::now();
        let bar = story.bar("acknowledged", LOAD.as_millis() as u64, "ms");
        while begin.elapsed() < LOAD {
            self.stop.check()?;
            if !load.is_whole() {
                let fault = match load.end() {
                    Err(error) => Broken::WriteFailed(error).into(),
                    Ok(()) => Fault::Interrupted,
                };
                return Err(fault);
            }
            bar.at(begin.elapsed().as_millis() as u64);
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(bar);
        let writes = ledger.acknowledged();
        let rate = writes as f64 / begin.elapsed().as_secs_f64();
        story.say(&format!(
            "{writes} writes acknowledged, {rate:.0} per second, and going on"
        ));
        Ok(load)
    }

    /// Kills alpha under load and has beta take over. Ends with the first write and read there.
    fn takeover(&mut self, story: &mut Story, ledger: &Ledger) -> Result<(Front, Duration), Fault> {
        story.step("kill -9 of every process of alpha; beta takes over");
        let killed = Instant::now();
        let processes = self.alpha.kill()?;
        let dead = killed.elapsed();
        // Refused while beta has not yet seen that alpha is gone.
        let mut refusals = 0;
        self.stop.wait("beta becomes primary", CHANGE, || {
            let ordered = self.beta.verb(&self.stop, &["primary", "--force", STORY]);
            match ordered {
                Ok(()) => Ok(Some(())),
                Err(Fault::Verb { status, .. }) if status.code() == Some(3) => {
                    refusals += 1;
                    Ok(None)
                }
                Err(fault) => Err(fault),
            }
        })?;
        let promoted = killed.elapsed();
        let mut front = self.place(1, STORY)?.open().map_err(on_beta)?;
        let last = ledger.blocks().saturating_sub(1);
        ledger.write(&mut front, last, 1).map_err(on_beta)?;
        let mut block = vec![0; BLOCK];
        front
            .read(last * BLOCK as u64, &mut block)
            .map_err(on_beta)?;
        let takeover = killed.elapsed();
        story.say(&format!(
            "{processes} processes killed, gone after {} ms; primary on beta after {} ms \
             (refused {refusals} times before)",
            dead.as_millis(),
            promoted.as_millis()
        ));
        story.say(&format!(
            "first write and read on beta {} ms after the kill",
            takeover.as_millis()
        ));
        Ok((front, takeover))
    }

    /// Waits for the writers of the killed node. Over NBD they have failed; requests to a block
    /// device wait until its node returns, and their writers are given back.
    fn end_load(&self, load: Load) -> Result<Option<Load>, Fault> {
        if self.place(0, STORY)?.is_device() {
            return Ok(Some(load));
        }
        let _failed = load.end();
        Ok(None)
    }

    /// Returns the number of lost writes: 0, or it fails.
    fn check(&self, story: &mut Story, ledger: &Ledger, front: &mut Front) -> Result<u64, Fault> {
        story.step("every acknowledged write is looked up on beta");
        let bar = story.bar("checked", ledger.blocks(), "blocks");
        let verdict = ledger
            .check(|offset, data| front.read(offset, data), |at| bar.at(at))
            .map_err(on_beta)?;
        drop(bar);
        let lost = judged(&verdict, "beta")?;
        story.say(&format!(
            "{} acknowledged writes, {} blocks looked up: lost 0",
            ledger.acknowledged(),
            verdict.checked
        ));
        story.say(&format!(
            "in flight at the kill: {} writes done, {} not done; nobody was told otherwise",
            verdict.open_done, verdict.open_undone
        ));
        Ok(lost)
    }

    fn change(&self, story: &mut Story, ledger: &Ledger, front: &mut Front) -> Result<(), Fault> {
        let mib = CHANGED / MIB;
        story.step(&format!("{mib} MiB more are written on beta, alone"));
        ledger
            .write_rows(front, 0, CHANGED / BLOCK as u64)
            .and_then(|()| front.flush())
            .map_err(on_beta)?;
        let (_, peer) = self.beta.volume(STORY)?;
        story.say(&format!(
            "beta remembers {} KiB as out of sync",
            peer.out_of_sync
        ));
        Ok(())
    }

    /// Starts alpha again. Returns the KiB that were copied to it.
    fn come_back(&mut self, story: &mut Story, size: u64) -> Result<u64, Fault> {
        story.step("alpha comes back: only what differs is copied");
        let before = self.beta.volume(STORY)?.1.sent;
        let begin = Instant::now();
        self.alpha.start(&self.stop)?;
        self.connected(STORY)?;
        self.sync(story, "copied back", &self.beta, STORY)?;
        let copied_kib = self.beta.volume(STORY)?.1.sent.saturating_sub(before);
        story.say(&format!(
            "{copied_kib} of {} KiB in {:.1} s; {} KiB had changed",
            size / KIB,
            begin.elapsed().as_secs_f64(),
            CHANGED / KIB
        ));
        let changed_kib = CHANGED / KIB;
        let limit_kib = (CHANGED + COPY_BESIDES).min(size / 2) / KIB;
        if copied_kib > limit_kib {
            let broken = Broken::CopiedTooMuch {
                copied_kib,
                limit_kib,
            };
            return Err(broken.into());
        }
        if copied_kib < changed_kib {
            let broken = Broken::CopiedTooLittle {
                copied_kib,
                changed_kib,
            };
            return Err(broken.into());
        }
        Ok(copied_kib)
    }

    /// Has beta compare the copies while they are in use, and then, to check the verify itself,
    /// compares the files past both nodes. Returns the KiB that the verify compared.
    fn verify(
        &self,
        story: &mut Story,
        ledger: &Ledger,
        front: &mut Front,
        size: u64,
    ) -> Result<u64, Fault> {
        story.step("online verify: both copies are compared while they are in use");
        front.flush().map_err(on_beta)?;
        let verified_kib = self.online_verify(story)?;
        let disks = [0, 1].map(|node| self.scene.disk(node, STORY));
        let bar = story.bar("compared", size / MIB, "MiB");
        let progress = |bytes| bar.at(bytes / MIB);
        compare([&disks[0], &disks[1]], size, &self.stop, progress)?;
        drop(bar);
        let shown = disks[0].display().to_string();
        let disk = File::open(&disks[0]).map_err(Fault::io(shown.clone()))?;
        let verdict = ledger
            .check(|offset, data| disk.read_exact_at(data, offset), |_| {})
            .map_err(Fault::io(shown))?;
        judged(&verdict, "alpha")?;
        story.say(&format!(
            "byte by byte, past both nodes: {} KiB are equal, and alpha holds every \
             acknowledged write, too",
            size / KIB
        ));
        Ok(verified_kib)
    }

    fn online_verify(&self, story: &Story) -> Result<u64, Fault> {
        let begin = Instant::now();
        self.beta.verb(&self.stop, &["verify", STORY])?;
        let run = story.run("verified");
        let ended = self.stop.wait("the verify ends", SYNC, || {
            let (_, peer) = self.beta.volume(STORY)?;
            run.at(&peer);
            Ok((peer.verify.state != "running").then_some(peer.verify))
        })?;
        drop(run);
        let compared_kib = ended.at.saturating_sub(ended.skipped_kib);
        let seconds = begin.elapsed().as_secs_f64();
        story.say(&format!(
            "{compared_kib} KiB in {seconds:.1} s: {} KiB differ, {} KiB skipped",
            ended.found_kib, ended.skipped_kib
        ));
        if ended.state != "done" || ended.found_kib > 0 {
            let broken = Broken::Verify {
                state: ended.state,
                at_kib: ended.at,
                found_kib: ended.found_kib,
            };
            return Err(broken.into());
        }
        Ok(compared_kib)
    }

    fn latencies(&self, story: &mut Story) -> Result<(), Fault> {
        story.step("latency of single writes of 4 KiB under protocols A, B and C");
        for (name, _) in MEASURED {
            self.on_both(&["up", name])?;
        }
        for (name, _) in MEASURED {
            self.connected(name)?;
            self.beta.verb(&self.stop, &["primary", "--force", name])?;
        }
        for (name, _) in MEASURED {
            self.sync(story, name, &self.beta, name)?;
        }
        story.say("protocol   writes    p50 us    p99 us  p99.9 us");
        for (name, protocol) in MEASURED {
            self.stop.check()?;
            let measured = self.place(1, name)?.open();
            let measured = measured.and_then(|mut front| latency::measure(&mut front, MEASURE));
            let latency = measured.map_err(on_beta)?;
            story.say(&format!(
                "{protocol:<8} {:>8} {:>9} {:>9} {:>9}",
                latency.writes, latency.p50, latency.p99, latency.p999
            ));
        }
        for (name, _) in MEASURED {
            self.on_both(&["down", name])?;
        }
        Ok(())
    }

    fn on_both(&self, words: &[&str]) -> Result<(), Fault> {
        self.alpha.verb(&self.stop, words)?;
        self.beta.verb(&self.stop, words)
    }

    fn place(&self, node: usize, resource: &'static str) -> Result<&Place, Fault> {
        let place = self.scene.place(node, resource);
        place.ok_or(Fault::Unsaid {
            node: NODES[node],
            what: resource,
        })
    }

    /// Takes both nodes down in order.
    pub fn end(mut self) -> Result<(), Fault> {
        let alpha = self.alpha.end();
        self.beta.end().and(alpha)
    }

    /// Leaves the pair running and says how to reach it.
    pub fn keep(self, story: &Story, folder: &Path) {
        for line in self.directions(folder) {
            story.say(&line);
        }
        self.alpha.keep();
        self.beta.keep();
    }

    fn directions(&self, folder: &Path) -> Vec<String> {
        let mut lines = vec![format!("the pair goes on; beta is primary of {STORY}")];
        match self.scene.place(1, STORY) {
            Some(Place::Device(minor)) => {
                let device = format!("/dev/ublkb{minor}");
                lines.push(format!("  mkfs.ext4 {device} && mount {device} /mnt"));
            }
            Some(place) => {
                let uri = place.configured();
                lines.push(format!("  nbdinfo '{uri}'"));
                lines.push(format!("  nbdcopy --progress '{uri}' copy.img"));
                lines.push(format!("  qemu-img info '{uri}'"));
            }
            None => {}
        }
        let both = [&self.alpha, &self.beta];
        lines.push("look:".to_owned());
        lines.extend(both.map(|node| format!("  {}", node.shell("status"))));
        lines.push("hand over:".to_owned());
        lines.push(format!(
            "  {} && {}",
            self.beta.shell(&format!("secondary {STORY}")),
            self.alpha.shell(&format!("primary {STORY}"))
        ));
        let ids: Vec<String> = both.iter().filter_map(|node| node.agent_id()).collect();
        lines.push("stop, and remove everything:".to_owned());
        lines.push(format!("  kill {}", ids.join(" ")));
        lines.push(format!("  rm -r {}", folder.display()));
        lines
    }

    /// Shows the ends of both logs.
    pub fn last_words(&self, story: &Story) {
        for node in [&self.alpha, &self.beta] {
            let log = fs::read_to_string(node.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(LAST_WORDS);
            for line in lines.iter().skip(from) {
                story.say(&format!("{}: {line}", node.name));
            }
        }
    }
}

fn on_beta(error: FrontError) -> Fault {
    Fault::front("a request on beta")(error)
}

/// The number of lost blocks, which is 0, or the broken promise.
fn judged(verdict: &Verdict, node: &'static str) -> Result<u64, Fault> {
    match &verdict.first {
        None => Ok(verdict.lost),
        Some(first) => Err(Broken::Lost {
            node,
            lost: verdict.lost,
            checked: verdict.checked,
            first: first.clone(),
        }
        .into()),
    }
}
