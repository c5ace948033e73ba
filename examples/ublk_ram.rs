//! A ublk server without replication: volumes kept in plain files. For trying the front end on a
//! real kernel (`tests/lab/ublk-drill`), and the smallest example of how the parts are used.
//!
//!     ublk_ram features
//!     ublk_ram serve [--recover] RECORDS ID=FILE...   prints "live", ends with the devices
//!     ublk_ram settings ID
//!     ublk_ram users ID
//!     ublk_ram try-stop ID | stop ID | delete ID
//!     ublk_ram leftovers RECORDS
//!     ublk_ram fail RECORDS ID
//!
//! Exit code 3 means that a device is in use, 1 any other failure.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, squeue};
use lockstep::engine::{IoFailure, Op, Span, Term};
use lockstep::target::ublk::{
    DEFAULT_DEPTH, DeviceRecord, Geometry, RecordDir, UblkControl, UblkError, UblkQueue,
    apply_queue_settings, device_users, fail_device, find_leftovers,
};
use lockstep::target::{Target, TargetEvent};
use lockstep_transport::ring::{RingFull, Submitter};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const LIMIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            match error.downcast_ref::<UblkError>() {
                Some(UblkError::Busy { .. }) => ExitCode::from(3),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(words: &[&str]) -> Outcome<()> {
    match words {
        ["features"] => {
            let features = UblkControl::open()?.features();
            println!("{:#x}", features.bits());
            println!("try-stop {}", features.try_stop());
            println!("no-partition-scan {}", features.no_partition_scan());
        }
        ["serve", "--recover", records, devices @ ..] => serve(records, devices, true)?,
        ["serve", records, devices @ ..] => serve(records, devices, false)?,
        ["settings", id] => apply_queue_settings(id.parse()?)?,
        ["users", id] => {
            for user in device_users(id.parse()?) {
                println!("{user}");
            }
        }
        ["try-stop", id] => UblkControl::open()?.try_stop(id.parse()?, Duration::from_secs(1))?,
        ["stop", id] => UblkControl::open()?.stop(id.parse()?, LIMIT)?,
        ["delete", id] => UblkControl::open()?.delete_async(id.parse()?)?,
        ["leftovers", records] => {
            let (records, errors) = RecordDir::open(Path::new(records))?.load()?;
            for leftover in find_leftovers(&mut UblkControl::open()?, records)? {
                println!("{} {:?}", leftover.record.id, leftover.state);
            }
            for error in errors {
                println!("{error}");
            }
        }
        ["fail", records, id] => fail(records, id.parse()?)?,
        _ => return Err("see the head of examples/ublk_ram.rs".into()),
    }
    Ok(())
}

fn fail(records: &str, id: u32) -> Outcome<()> {
    let records = RecordDir::open(Path::new(records))?;
    let (known, _) = records.load()?;
    let record = known.into_iter().find(|record| record.id == id);
    let record = record.ok_or("no record of this device")?;
    let done = fail_device(&mut UblkControl::open()?, &record, Duration::from_secs(5))?;
    println!("{done:?}");
    if done.deleted {
        records.remove(id)?;
    }
    Ok(())
}

// ---- the server ---------------------------------------------------------------------------------

/// One volume: a queue and the file behind it.
struct Volume {
    id: u32,
    queue: UblkQueue,
    file: File,
    counts: Counts,
    stopped: bool,
}

#[derive(Debug, Default)]
struct Counts {
    reads: u64,
    writes: u64,
    fua: u64,
    flushes: u64,
    discards: u64,
    zeroes: u64,
}

fn serve(records: &str, devices: &[&str], recover: bool) -> Outcome<()> {
    let records = RecordDir::open(Path::new(records))?;
    let devices: Vec<(u32, String)> = devices
        .iter()
        .map(|device| {
            let (id, file) = device.split_once('=').ok_or("devices are ID=FILE")?;
            Ok((id.parse()?, file.to_owned()))
        })
        .collect::<Outcome<_>>()?;
    let (volumes_out, volumes_in) = channel();
    let control = thread::spawn(move || control_thread(&records, devices, recover, volumes_out));
    let served = reactor(&volumes_in, &control);
    control
        .join()
        .map_err(|_| "the control thread panicked")??;
    served
}

/// Adds or takes over the devices, hands their queues to the reactor and starts them.
fn control_thread(
    records: &RecordDir,
    devices: Vec<(u32, String)>,
    recover: bool,
    volumes: Sender<Volume>,
) -> Outcome<()> {
    let mut control = UblkControl::open()?;
    for (id, file) in devices {
        let started = Instant::now();
        let file = OpenOptions::new().read(true).write(true).open(file)?;
        let size = file.metadata()?.len();
        let info = match recover {
            true => control.begin_recovery(id, Duration::from_secs(3))?,
            false => {
                control.ensure_free(id)?;
                let cookie = getrandom::u64()?;
                records.write(&DeviceRecord::new(id, "ram", 0, Term::ZERO, cookie))?;
                control.add(id, DEFAULT_DEPTH, cookie)?
            }
        };
        if !recover {
            control.set_params(
                id,
                &Geometry {
                    size,
                    logical_block: 512,
                    physical_block: 4096,
                    io_opt: 1 << 20,
                    discard: Some(4096),
                },
            )?;
        }
        let queue = UblkQueue::open(&info, size, LIMIT)?;
        let volume = Volume {
            id,
            queue,
            file,
            counts: Counts::default(),
            stopped: false,
        };
        volumes.send(volume).map_err(|_| "the reactor has ended")?;
        match recover {
            true => control.end_recovery(id, LIMIT)?,
            false => control.start(id, LIMIT)?,
        }
        println!("live {id} after {} ms", started.elapsed().as_millis());
    }
    println!("live");
    Ok(())
}

/// One owner's share of the ring.
struct Share<'a> {
    ring: &'a mut IoUring,
    owner: u64,
}

impl Submitter for Share<'_> {
    fn submit(&mut self, entry: squeue::Entry, token: u32) -> Result<(), RingFull> {
        let entry = entry.user_data(self.owner << 32 | u64::from(token));
        // SAFETY: the target keeps what its entries name alive until their completions, and the
        // ring is dropped before the volumes are.
        if unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        self.ring.submit().map_err(|_| RingFull)?;
        // SAFETY: as above.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| RingFull)
    }
}

/// Runs all volumes on one ring until every one of them has ended.
fn reactor(incoming: &Receiver<Volume>, control: &thread::JoinHandle<Outcome<()>>) -> Outcome<()> {
    let mut volumes: Vec<Volume> = Vec::new();
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_taskrun_flag()
        .setup_cqsize(4096)
        .build(256)?;
    loop {
        while let Ok(volume) = incoming.try_recv() {
            let owner = volumes.len() as u64;
            volumes.push(volume);
            let mut share = Share {
                ring: &mut ring,
                owner,
            };
            if let Some(volume) = volumes.last_mut() {
                volume.queue.start(&mut share)?;
            }
        }
        if control.is_finished() && volumes.iter().all(|volume| volume.stopped) {
            for volume in &volumes {
                println!("end {} {:?}", volume.id, volume.counts);
            }
            return Ok(());
        }
        wait(&mut ring)?;
        let completions: Vec<_> = ring.completion().collect();
        for entry in completions {
            let owner = entry.user_data() >> 32;
            let Some(volume) = volumes.get_mut(owner as usize) else {
                continue;
            };
            let mut share = Share {
                ring: &mut ring,
                owner,
            };
            let mut events = Vec::new();
            let token = entry.user_data() as u32;
            let (result, flags) = (entry.result(), entry.flags());
            let queue = &mut volume.queue;
            queue.on_completion(&mut share, token, result, flags, &mut events);
            for event in events {
                volume.handle(&mut share, event);
            }
        }
    }
}

/// Until something completes; now and then in any case, to look for new volumes.
fn wait(ring: &mut IoUring) -> Outcome<()> {
    let time = io_uring::types::Timespec::from(Duration::from_millis(20));
    let arguments = io_uring::types::SubmitArgs::new().timespec(&time);
    match ring.submitter().submit_with_args(1, &arguments) {
        Ok(_) => Ok(()),
        Err(error) => match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::TIME | rustix::io::Errno::INTR) => Ok(()),
            _ => Err(error.into()),
        },
    }
}

impl Volume {
    fn handle(&mut self, ring: &mut Share<'_>, event: TargetEvent) {
        match event {
            TargetEvent::Request { tag, op } => {
                let result = self.carry_out(tag, op).map_err(|error| {
                    eprintln!("device {}: {op:?}: {error}", self.id);
                    IoFailure::Disk(error.raw_os_error().unwrap_or(0))
                });
                self.queue.complete(ring, tag, result);
            }
            TargetEvent::Stopped => self.stopped = true,
        }
    }

    fn carry_out(&mut self, tag: u32, op: Op) -> std::io::Result<()> {
        let counts = &mut self.counts;
        match op {
            Op::Read { span } => {
                counts.reads += 1;
                let buffer = &mut self.queue.buffer(tag)[..span.len as usize];
                self.file.read_exact_at(buffer, span.start)
            }
            Op::Write { span, fua } => {
                counts.writes += 1;
                counts.fua += u64::from(fua);
                let buffer = &self.queue.buffer(tag)[..span.len as usize];
                self.file.write_all_at(buffer, span.start)
            }
            Op::WriteZeroes { span, .. } => {
                counts.zeroes += 1;
                self.punch(span)
            }
            Op::Discard { span } => {
                counts.discards += 1;
                self.punch(span)
            }
            Op::Flush => {
                counts.flushes += 1;
                Ok(())
            }
        }
    }

    fn punch(&self, span: Span) -> std::io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let done = fallocate(&self.file, flags, span.start, u64::from(span.len));
        done.map_err(std::io::Error::from)
    }
}
