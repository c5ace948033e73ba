//! Compares the two disks of a resource behind the nodes' backs, block by block.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::fault::{Broken, Fault};
use super::load::BLOCK;
use super::stop::Stop;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Compares the first `bytes` of two disks that nobody writes to. `progress` is told the number of
/// bytes compared.
pub fn compare(
    disks: [&Path; 2],
    bytes: u64,
    stop: &Stop,
    mut progress: impl FnMut(u64),
) -> Result<(), Fault> {
    let open = |path: &Path| File::open(path).map_err(Fault::io(path.display().to_string()));
    let files = [open(disks[0])?, open(disks[1])?];
    let mut buffers = [vec![0; CHUNK], vec![0; CHUNK]];
    let (mut at, mut blocks, mut first) = (0, 0, 0);
    while at < bytes {
        stop.check()?;
        let length = (bytes - at).min(CHUNK as u64) as usize;
        for ((file, buffer), path) in files.iter().zip(&mut buffers).zip(disks) {
            file.read_exact_at(&mut buffer[..length], at)
                .map_err(Fault::io(path.display().to_string()))?;
        }
        let [one, other] = &buffers;
        let pairs = one[..length]
            .chunks(BLOCK)
            .zip(other[..length].chunks(BLOCK));
        for (index, _) in pairs.enumerate().filter(|(_, (a, b))| a != b) {
            if blocks == 0 {
                first = at + (index * BLOCK) as u64;
            }
            blocks += 1;
        }
        at += length as u64;
        progress(at);
    }
    if blocks > 0 {
        return Err(Broken::DisksDiffer { blocks, first }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named_and_what_lies_beyond_does_not_count() {
        let dir = tempfile::tempdir().expect("dir");
        let paths = [dir.path().join("a"), dir.path().join("b")];
        let mut data = vec![7; 3 * CHUNK];
        std::fs::write(&paths[0], &data).expect("writes");
        data[CHUNK + 5000] = 8;
        data[2 * CHUNK] = 8;
        std::fs::write(&paths[1], &data).expect("writes");
        let disks = [paths[0].as_path(), paths[1].as_path()];
        let run = |bytes| compare(disks, bytes, &Stop::default(), |_| {});
        assert!(run(CHUNK as u64 + 4096).is_ok());
        let Err(Fault::Broken(Broken::DisksDiffer { blocks, first })) = run(3 * CHUNK as u64)
        else {
            panic!("no difference found");
        };
        assert_eq!((blocks, first), (2, CHUNK as u64 + 4096));
        assert!(
            run(3 * CHUNK as u64 + 1).is_err(),
            "a disk that is too short"
        );
    }
}
