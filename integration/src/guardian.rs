//! Cleans up after a test process however it ends.
//!
//! Destructors do not run for statics, nor after `kill -9`. So every server has a small shell beside it that
//! reads from a pipe whose other end only the test process holds. The pipe closes when the handle is
//! dropped or the process is gone; then the shell stops the server and removes its folder.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub(crate) struct Guardian(Child);

impl Guardian {
    /// Watches over the process whose id stands in the first line of `pid_file` and whose arguments name
    /// `folder`, which is removed after the process is gone. The id alone does not tell: it outlives its
    /// process in the file, and where there are 32,768 of them a long run hands each out again.
    pub(crate) fn new(pid_file: &Path, folder: &Path) -> io::Result<Self> {
        const SCRIPT: &str = r#"
            trap '' HUP INT TERM
            read -r _
            runs() { grep -qF "$1" "/proc/$pid/cmdline" 2>/dev/null; }
            if read -r pid _ 2>/dev/null <"$1" && runs "$2"; then
                kill -QUIT "$pid" 2>/dev/null
                n=0
                while runs "$2" && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
                runs "$2" && kill -KILL "$pid" 2>/dev/null
            fi
            rm -rf "$2"
        "#;
        let child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "guardian"])
            .arg(pid_file)
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Nothing can be done about a failure here; the shell does its work in any case.
        let _ = self.0.wait();
    }
}
