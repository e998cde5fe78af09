//! Processes that are found again although whoever started them is gone: by a file with their id and the time at which they
//! began, since ids are used again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How often a process that was told to end is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A process at one time of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pid: i32,
    /// Ticks from the machine's start to the process's (proc(5)).
    began: u64,
}

impl Process {
    /// The process with this id, if there is one that has not ended.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, began) = state_and_start(&stat)?;
        (pid > 0 && !"ZX".contains(state)).then_some(Self { pid, began })
    }

    /// Writes its file.
    pub(crate) fn write(self, path: &Path) -> io::Result<()> {
        fs::write(path, format!("{} {}\n", self.pid, self.began)).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
        })
    }

    /// The process that a file speaks of, if it is still there and no other one.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, began) = text.trim().split_once(' ')?;
        let written = Self { pid: pid.parse().ok()?, began: began.parse().ok()? };
        Self::find(written.pid).filter(|found| *found == written)
    }

    /// Whether it still runs.
    pub(crate) fn is_running(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Asks it to end, and makes it after `grace`. Returns whether it is gone.
    pub(crate) fn end(self, grace: Duration) -> bool {
        for (signal, patience) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, Duration::from_secs(5))] {
            if !self.is_running() || kill(Pid::from_raw(self.pid), signal) == Err(Errno::ESRCH) {
                return true;
            }
            let asked = Instant::now();
            while self.is_running() && asked.elapsed() < patience {
                thread::sleep(LOOK_AGAIN);
            }
        }
        !self.is_running()
    }
}

/// State and start of a process from its /proc/PID/stat. The name before them may hold anything, also parentheses.
fn state_and_start(stat: &str) -> Option<(char, u64)> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    // Fields 3 and 22 of proc(5), of which the first two are cut off.
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

/// Ends what the PID files in a folder and its subfolders speak of, and removes these. Returns those processes that are still there.
pub(crate) fn reap(folder: &Path, grace: Duration) -> Vec<PathBuf> {
    let mut left = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return left };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            left.extend(reap(&path, grace));
        } else if path.extension().is_some_and(|extension| extension == "pid") {
            match Process::read(&path).is_none_or(|process| process.end(grace)) {
                true => drop(fs::remove_file(&path)),
                false => left.push(path),
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("linerate-pid-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Goal: what a file speaks of is ended, and the file goes. Method: two processes, one of which must be killed.
    #[test]
    fn processes_are_ended_by_their_files() {
        let folder = folder("end");
        let scripts = ["exec sleep 60", "trap '' TERM; echo; while :; do sleep 0.05; done"];
        let mut children: Vec<_> = scripts
            .map(|script| Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap())
            .into();
        // The second one says so when it no longer heeds the signal.
        let mut byte = [0];
        io::Read::read_exact(children[1].stdout.as_mut().unwrap(), &mut byte).unwrap();
        for (index, child) in children.iter().enumerate() {
            let process = Process::find(child.id() as i32).unwrap();
            process.write(&folder.join(format!("{index}.pid"))).unwrap();
            assert!(process.is_running());
        }
        assert_eq!(reap(&folder, Duration::from_millis(100)), Vec::<PathBuf>::new());
        for child in &mut children {
            assert!(!child.wait().unwrap().success());
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Goal: a process that has got the id of one that is gone is left alone. Method: a file with the id of a running
    /// process and another start, and files that are none.
    #[test]
    fn a_recycled_id_is_left_alone() {
        let folder = folder("recycled");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::find(child.id() as i32).unwrap();
        Process { began: process.began - 1, ..process }.write(&folder.join("old.pid")).unwrap();
        fs::write(folder.join("torn.pid"), "12").unwrap();
        fs::write(folder.join("all.pid"), "-1 0").unwrap();
        assert!(reap(&folder, Duration::ZERO).is_empty());
        assert!(process.is_running());
        // One that was not waited for has ended all the same.
        assert!(process.end(Duration::from_secs(60)));
        assert_eq!(Process::find(child.id() as i32), None);
        child.wait().unwrap();
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn names_of_processes_may_hold_anything() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(state_and_start(&format!("12 (a) R 1 (b)) {rest}")), Some(('S', 777)));
        assert_eq!(state_and_start("12 (short) S 1"), None);
        assert_eq!(state_and_start(""), None);
    }
}
