//! Runs a script in an emulated machine with a stock Debian kernel (`tests/lab/README.md`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// One guest at a time: two of them on a small machine only make each other late.
static TURN: Mutex<()> = Mutex::new(());

/// A run of a script in a guest.
pub struct Run<'a> {
    /// Kernel series, `7` or `6.12`.
    pub kernel: &'a str,
    /// Modules to load before the script, separated by blanks.
    pub modules: &'a str,
    /// Programs under test.
    pub programs: &'a [PathBuf],
    /// Name of the script in `tests/lab`.
    pub script: &'a str,
    /// Limit for the whole run, seconds.
    pub limit: u32,
}

impl Run<'_> {
    /// Prepares the kernel where that has not been done, boots it, and returns what the script
    /// printed. Fails the test when the script does not end with 0.
    pub fn check(&self) -> String {
        let turn = TURN.lock();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab");
        let prepared = Command::new(folder.join("prepare"))
            .arg(self.kernel)
            .status()
            .expect("tests/lab/prepare cannot be run");
        assert!(
            prepared.success(),
            "tests/lab/prepare {} failed",
            self.kernel
        );
        let mut guest = Command::new(folder.join("vm"));
        guest.args(["--kernel", self.kernel, "--modules", self.modules]);
        guest.args(["--timeout", &self.limit.to_string()]);
        for program in self.programs {
            guest.arg("--bin").arg(program);
        }
        let run = guest
            .arg(folder.join(self.script))
            .stdin(Stdio::null())
            .output()
            .expect("tests/lab/vm cannot be run");
        drop(turn);
        let output = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(
            run.status.success(),
            "{} on kernel {} ended with {:?}\n{output}\n{}",
            self.script,
            self.kernel,
            run.status.code(),
            String::from_utf8_lossy(&run.stderr)
        );
        output
    }
}

/// Builds an example of the root package and returns its path.
pub fn example(name: &str) -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "lockstep",
            "--example",
            name,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo cannot be run");
    assert!(built.success(), "example {name} cannot be built");
    // This test program is target/PROFILE/deps/NAME; examples of the profile `dev` are asked for.
    let program = std::env::current_exe().expect("the path of this program");
    let target = program.ancestors().nth(3).expect("a target folder");
    target.join("debug/examples").join(name)
}
