//! Control commands: one 80-byte `URING_CMD` on `/dev/ublk-control`, on a ring of its own.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use libublk::sys;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::UblkError;

const CONTROL_PATH: &str = "/dev/ublk-control";

/// The control commands that this program uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    GetInfo,
    Add,
    SetParams,
    Start,
    Stop,
    TryStop,
    DeleteAsync,
    StartRecovery,
    EndRecovery,
}

impl Command {
    fn code(self) -> u32 {
        match self {
            Command::GetInfo => sys::UBLK_U_CMD_GET_DEV_INFO,
            Command::Add => sys::UBLK_U_CMD_ADD_DEV,
            Command::SetParams => sys::UBLK_U_CMD_SET_PARAMS,
            Command::Start => sys::UBLK_U_CMD_START_DEV,
            Command::Stop => sys::UBLK_U_CMD_STOP_DEV,
            Command::TryStop => sys::UBLK_U_CMD_TRY_STOP_DEV,
            Command::DeleteAsync => sys::UBLK_U_CMD_DEL_DEV_ASYNC,
            Command::StartRecovery => sys::UBLK_U_CMD_START_USER_RECOVERY,
            Command::EndRecovery => sys::UBLK_U_CMD_END_USER_RECOVERY,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::GetInfo => "GET_DEV_INFO",
            Command::Add => "ADD_DEV",
            Command::SetParams => "SET_PARAMS",
            Command::Start => "START_DEV",
            Command::Stop => "STOP_DEV",
            Command::TryStop => "TRY_STOP_DEV",
            Command::DeleteAsync => "DEL_DEV_ASYNC",
            Command::StartRecovery => "START_USER_RECOVERY",
            Command::EndRecovery => "END_USER_RECOVERY",
        })
    }
}

/// What a command may hand over as its buffer.
///
/// # Safety
///
/// Implementors are plain old data: any bytes that the kernel writes make a valid value.
pub(super) unsafe trait Body: Copy {}

// SAFETY: no bytes at all.
unsafe impl Body for () {}
// SAFETY: integers only, laid out by the kernel's header.
unsafe impl Body for sys::ublksrv_ctrl_dev_info {}
// SAFETY: integers only, laid out by the kernel's header.
unsafe impl Body for sys::ublk_params {}

/// The control device with a ring for its commands.
pub(super) struct CommandRing {
    device: OwnedFd,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    token: u64,
}

impl CommandRing {
    /// Opens the control device; says what is missing when it cannot.
    pub(super) fn open() -> Result<CommandRing, UblkError> {
        let device = rustix::fs::open(CONTROL_PATH, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| match errno {
                Errno::NOENT | Errno::NXIO | Errno::NODEV => UblkError::NoDriver,
                Errno::ACCESS | Errno::PERM => UblkError::NoPermission,
                errno => UblkError::ControlDevice(errno),
            })?;
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder()
            .build(8)
            .map_err(|error| UblkError::NoRing(errno_of(&error)))?;
        Ok(CommandRing {
            device,
            ring,
            token: 0,
        })
    }

    /// Runs one command on device `id` and waits at most `limit` for its end.
    ///
    /// `body` goes to the kernel as the command's buffer and comes back as the kernel left it.
    /// A command that outlives its limit keeps its buffer: a few bytes are leaked, so that the
    /// kernel cannot write into memory that has a new owner.
    pub(super) fn run<B: Body>(
        &mut self,
        command: Command,
        id: u32,
        data: u64,
        body: B,
        limit: Duration,
    ) -> Result<B, UblkError> {
        self.token += 1;
        let body = Box::leak(Box::new(body)) as *mut B;
        let entry = opcode::UringCmd80::new(types::Fd(self.device.as_raw_fd()), command.code())
            .cmd(encode(id, data, body as u64, size_of::<B>() as u16))
            .build()
            .user_data(self.token);
        // SAFETY: the entry names the open control device and a buffer that nobody frees before
        // the command has ended.
        let queued = unsafe { self.ring.submission().push(&entry) };
        let result = match queued {
            Ok(()) => self.wait(command, id, limit)?,
            Err(_) => -Errno::AGAIN.raw_os_error(),
        };
        // SAFETY: the command has ended (or never began), so the buffer is ours again; it was
        // made by `Box::new` above.
        let body = *unsafe { Box::from_raw(body) };
        if result < 0 {
            return Err(UblkError::Refused {
                command,
                id,
                errno: Errno::from_raw_os_error(-result),
            });
        }
        Ok(body)
    }

    fn wait(&mut self, command: Command, id: u32, limit: Duration) -> Result<i32, UblkError> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(entry) = self.ring.completion().next() {
                // Others belong to commands that were given up.
                if entry.user_data() == self.token {
                    return Ok(entry.result());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(UblkError::Timeout { command, id, limit });
            }
            let time = types::Timespec::from(left);
            let arguments = types::SubmitArgs::new().timespec(&time);
            match self.ring.submitter().submit_with_args(1, &arguments) {
                Ok(_) => {}
                Err(error) => match errno_of(&error) {
                    Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN => {}
                    errno => return Err(UblkError::NoRing(errno)),
                },
            }
        }
    }
}

/// The kernel's `ublksrv_ctrl_cmd` at the start of the command area.
fn encode(id: u32, data: u64, address: u64, length: u16) -> [u8; 80] {
    let mut bytes = [0; 80];
    bytes[0..4].copy_from_slice(&id.to_ne_bytes());
    // No queue: all of the device.
    bytes[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
    if length > 0 {
        bytes[6..8].copy_from_slice(&length.to_ne_bytes());
        bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    }
    bytes[16..24].copy_from_slice(&data.to_ne_bytes());
    bytes
}

pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn command_matches_the_kernels_layout() {
        type Cmd = sys::ublksrv_ctrl_cmd;
        let bytes = encode(7, 0x1122_3344_5566_7788, 0xaabb_ccdd, 64);
        let at = |offset: usize, len: usize| bytes[offset..offset + len].to_vec();
        assert_eq!(at(offset_of!(Cmd, dev_id), 4), 7u32.to_ne_bytes());
        assert_eq!(at(offset_of!(Cmd, queue_id), 2), u16::MAX.to_ne_bytes());
        assert_eq!(at(offset_of!(Cmd, len), 2), 64u16.to_ne_bytes());
        assert_eq!(at(offset_of!(Cmd, addr), 8), 0xaabb_ccddu64.to_ne_bytes());
        assert_eq!(
            at(offset_of!(Cmd, data), 8),
            0x1122_3344_5566_7788u64.to_ne_bytes()
        );
        assert!(bytes[24..].iter().all(|&byte| byte == 0));
        assert_eq!(encode(7, 0, 0xaabb, 0)[6..16], [0; 10]);
    }

    #[test]
    fn a_machine_without_the_driver_is_told_so() {
        if std::path::Path::new(CONTROL_PATH).exists() {
            return;
        }
        assert!(matches!(CommandRing::open(), Err(UblkError::NoDriver)));
    }
}
