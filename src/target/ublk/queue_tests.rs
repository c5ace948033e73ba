//! The queue against a ring that only takes notes, with descriptors written by the test.

use std::os::fd::OwnedFd;

use super::*;
use crate::target::ublk::DeviceState;

/// Keeps the tokens of what was submitted; refuses when `room` is used up.
struct Notes {
    tokens: Vec<u32>,
    room: usize,
}

impl Submitter for Notes {
    fn submit(&mut self, _entry: squeue::Entry, token: u32) -> Result<(), RingFull> {
        if self.room == 0 {
            return Err(RingFull);
        }
        self.room -= 1;
        self.tokens.push(token);
        Ok(())
    }
}

fn ring() -> Notes {
    Notes {
        tokens: Vec::new(),
        room: usize::MAX,
    }
}

const SIZE: u64 = 64 << 20;

fn queue(depth: usize) -> UblkQueue {
    let device: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    UblkQueue {
        id: 0,
        device,
        // Anonymous here, so that the test can write the descriptors.
        descriptors: Mapping::anonymous(4096).unwrap(),
        buffers: Mapping::anonymous(depth * MAX_DATA as usize).unwrap(),
        tags: vec![TagState::Idle; depth],
        backlog: VecDeque::new(),
        size: SIZE,
        stopping: false,
        stopped: false,
    }
}

fn descriptor(op_flags: u32, start_sector: u64, nr_sectors: u32) -> sys::ublksrv_io_desc {
    sys::ublksrv_io_desc {
        op_flags,
        nr_sectors,
        start_sector,
        addr: 0,
    }
}

fn arrive(
    queue: &mut UblkQueue,
    ring: &mut Notes,
    tag: u32,
    request: sys::ublksrv_io_desc,
) -> Vec<TargetEvent> {
    let base = queue.descriptors.address.cast::<sys::ublksrv_io_desc>();
    // SAFETY: the mapping is one page, the tags of these tests are below 100.
    unsafe { base.add(tag as usize).write(request) };
    let mut events = Vec::new();
    queue.on_completion(ring, tag, 0, 0, &mut events);
    events
}

#[test]
fn io_command_matches_the_kernels_layout() {
    use std::mem::offset_of;
    type Cmd = sys::ublksrv_io_cmd;
    let bytes = encode(0x1234, -5, 0xdead_beef);
    assert_eq!(bytes[offset_of!(Cmd, q_id)..][..2], [0, 0]);
    assert_eq!(bytes[offset_of!(Cmd, tag)..][..2], 0x1234u16.to_ne_bytes());
    assert_eq!(bytes[offset_of!(Cmd, result)..][..4], (-5i32).to_ne_bytes());
    assert_eq!(
        bytes[offset_of!(Cmd, addr)..][..8],
        0xdead_beefu64.to_ne_bytes()
    );
}

#[test]
fn operations_and_flags_are_translated() {
    let span = Span::new(4096, 8192);
    let zeroes = |unmap, fua| Op::WriteZeroes { span, unmap, fua };
    let cases = [
        (sys::UBLK_IO_OP_READ, Op::Read { span }),
        (sys::UBLK_IO_OP_WRITE, Op::Write { span, fua: false }),
        (1 | 1 << 13, Op::Write { span, fua: true }),
        (sys::UBLK_IO_OP_WRITE_ZEROES, zeroes(true, false)),
        (5 | 1 << 15, zeroes(false, false)),
        (5 | 1 << 13, zeroes(true, true)),
        (sys::UBLK_IO_OP_DISCARD, Op::Discard { span }),
    ];
    for (op_flags, op) in cases {
        assert_eq!(
            translate(&descriptor(op_flags, 8, 16), SIZE),
            Ok((op, 8192))
        );
    }
    assert_eq!(
        translate(&descriptor(sys::UBLK_IO_OP_FLUSH, 0, 0), SIZE),
        Ok((Op::Flush, 0))
    );
}

#[test]
fn impossible_requests_are_refused() {
    let end = SIZE / 512;
    let cases = [
        (descriptor(13, 0, 8), Errno::OPNOTSUPP),
        (descriptor(0, 0, 0), Errno::IO),
        (descriptor(0, 0, 2049), Errno::IO),
        (descriptor(1, end - 7, 8), Errno::IO),
        (descriptor(1, u64::MAX, 8), Errno::IO),
        (descriptor(1, u64::MAX / 512, 8), Errno::IO),
        (descriptor(3, 0, (MAX_RANGE >> 9) + 1), Errno::IO),
        (descriptor(3, 0, u32::MAX), Errno::IO),
    ];
    for (request, errno) in cases {
        assert_eq!(translate(&request, SIZE), Err(errno), "{request:?}");
    }
    assert!(translate(&descriptor(1, end - 8, 8), SIZE).is_ok());
}

#[test]
fn a_tag_goes_round() {
    let (mut queue, mut ring) = (queue(2), ring());
    queue.start(&mut ring).unwrap();
    assert_eq!(ring.tokens, [0, 1]);
    let events = arrive(&mut queue, &mut ring, 1, descriptor(0, 0, 8));
    assert!(matches!(events[..], [TargetEvent::Request { tag: 1, .. }]));
    queue.complete(&mut ring, 1, Ok(()));
    assert_eq!(ring.tokens, [0, 1, 1]);
    // A second completion of the same request is not passed on.
    queue.complete(&mut ring, 1, Ok(()));
    assert_eq!(ring.tokens, [0, 1, 1]);
}

#[test]
fn start_goes_on_where_a_full_ring_stopped_it() {
    let (mut queue, mut ring) = (queue(3), ring());
    ring.room = 2;
    assert_eq!(queue.start(&mut ring), Err(RingFull));
    ring.room = 9;
    queue.start(&mut ring).unwrap();
    assert_eq!(ring.tokens, [0, 1, 2]);
}

#[test]
fn commits_wait_for_room_in_their_order() {
    let (mut queue, mut ring) = (queue(3), ring());
    queue.start(&mut ring).unwrap();
    for tag in 0..3 {
        arrive(&mut queue, &mut ring, tag, descriptor(2, 0, 0));
    }
    ring.tokens.clear();
    ring.room = 0;
    queue.complete(&mut ring, 2, Ok(()));
    queue.complete(&mut ring, 0, Ok(()));
    assert!(ring.tokens.is_empty());
    ring.room = 9;
    queue.complete(&mut ring, 1, Ok(()));
    assert_eq!(ring.tokens, [2, 0, 1]);
}

#[test]
fn the_end_comes_after_kernel_and_engine_are_done() {
    let (mut queue, mut ring) = (queue(2), ring());
    queue.start(&mut ring).unwrap();
    arrive(&mut queue, &mut ring, 0, descriptor(2, 0, 0));
    let mut events = Vec::new();
    let gone = sys::UBLK_IO_RES_ABORT;
    queue.on_completion(&mut ring, 1, gone, 0, &mut events);
    assert!(events.is_empty(), "tag 0 is still with the engine");
    queue.complete(&mut ring, 0, Err(IoFailure::NoData));
    assert!(events.is_empty());
    queue.on_completion(&mut ring, 0, gone, 0, &mut events);
    assert!(matches!(events[..], [TargetEvent::Stopped]));
    queue.stop(&mut ring, &mut events);
    assert_eq!(events.len(), 1, "the end is reported once");
}

#[test]
fn a_stopping_queue_fails_new_requests_itself() {
    let (mut queue, mut ring) = (queue(1), ring());
    queue.start(&mut ring).unwrap();
    let mut events = Vec::new();
    queue.stop(&mut ring, &mut events);
    assert!(events.is_empty());
    let events = arrive(&mut queue, &mut ring, 0, descriptor(1, 0, 8));
    assert!(events.is_empty());
    assert_eq!(ring.tokens, [0, 0], "fetched, then answered at once");
}

#[test]
fn a_queue_that_never_started_stops_at_once() {
    let (mut queue, mut ring) = (queue(1), ring());
    let mut events = Vec::new();
    queue.stop(&mut ring, &mut events);
    assert!(matches!(events[..], [TargetEvent::Stopped]));
}

#[test]
fn buffers_are_separate_and_aligned() {
    let mut queue = queue(2);
    queue.buffer(0).fill(1);
    queue.buffer(1)[0] = 2;
    assert_eq!(queue.buffer(0).len(), MAX_DATA as usize);
    assert_eq!(queue.buffer(0)[MAX_DATA as usize - 1], 1);
    assert_eq!(queue.buffer(1).as_ptr() as usize % 4096, 0);
    assert!(queue.buffer(2).is_empty());
}

#[test]
fn failures_become_errors_that_the_block_layer_knows() {
    let cases = [
        (IoFailure::NotPrimary, Errno::IO),
        (IoFailure::NoData, Errno::IO),
        (IoFailure::BadRequest, Errno::INVAL),
        (IoFailure::Disk(28), Errno::NOSPC),
        (IoFailure::Disk(11), Errno::IO),
        (IoFailure::Disk(-1), Errno::IO),
        (IoFailure::Disk(i32::MAX), Errno::IO),
    ];
    for (failure, errno) in cases {
        assert_eq!(errno_of(failure), errno);
    }
}

#[test]
fn a_device_with_larger_requests_than_buffers_is_refused() {
    let info = DeviceInfo {
        id: 4_000_000,
        state: DeviceState::Quiesced,
        server: None,
        depth: 16,
        queues: 1,
        max_io_bytes: MAX_DATA,
        cookie: 0,
    };
    let open = |info: &DeviceInfo| UblkQueue::open(info, SIZE, Duration::ZERO).err();
    // Without fault as far as its figures go; there is no such device.
    assert!(matches!(open(&info), Some(UblkError::CharDevice { .. })));
    let larger = DeviceInfo {
        max_io_bytes: MAX_DATA + 4096,
        ..info
    };
    assert!(matches!(
        open(&larger),
        Some(UblkError::Incompatible { .. })
    ));
    let more = DeviceInfo { queues: 2, ..info };
    assert!(matches!(open(&more), Some(UblkError::Incompatible { .. })));
}

#[test]
fn buffers_outlive_a_queue_that_the_kernel_still_uses() {
    let mapped = |address: u64| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| {
            let range = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'));
            let bound = |text: &str| u64::from_str_radix(text, 16).unwrap();
            range.is_some_and(|(low, high)| bound(low) <= address && address < bound(high))
        })
    };
    let mut fetching = queue(1);
    let address = fetching.buffer_address(0);
    fetching.start(&mut ring()).unwrap();
    drop(fetching);
    assert!(mapped(address));
}
