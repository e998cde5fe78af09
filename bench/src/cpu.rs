//! What a run costs: CPU time of threads and of the process, and memory.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use nix::{
    time::ClockId,
    unistd::{Pid, gettid},
};

/// The CPU time clock of a thread or of this process: user and system time together, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// All threads of this process, ended ones included.
    #[must_use]
    pub const fn process() -> Self {
        Self(ClockId::CLOCK_PROCESS_CPUTIME_ID)
    }

    /// The calling thread, so that another thread can watch it.
    #[must_use]
    pub fn this_thread() -> Self {
        Self::thread(gettid())
    }

    /// The thread of this process with the kernel's id `tid` (gettid(2)).
    #[must_use]
    pub fn thread(tid: Pid) -> Self {
        // A clock id is a bit pattern of the kernel's user interface, which pthread_getcpuclockid(3) makes in just
        // this way: the inverted id above, then bit 2 for "one thread" and 2 for "the scheduler's ns"
        // (CPUCLOCK_PERTHREAD_MASK and CPUCLOCK_SCHED, linux/posix-timers_types.h).
        Self(ClockId::from_raw((!tid.as_raw() << 3) | 4 | 2))
    }

    /// The threads of this process whose names start with `prefix`, by ascending id, which is the order in which they
    /// were started. The kernel keeps 15 bytes of a name.
    ///
    /// # Errors
    /// When `/proc/self/task` cannot be read. Threads that end meanwhile are left out.
    pub fn threads_named(prefix: &str) -> io::Result<Vec<Self>> {
        let mut ids = Vec::new();
        for task in fs::read_dir("/proc/self/task")? {
            let task = task?;
            let name = fs::read(task.path().join("comm")).unwrap_or_default();
            let id = task.file_name().to_str().and_then(|id| id.parse::<i32>().ok());
            ids.extend(id.filter(|_| name.starts_with(prefix.as_bytes())));
        }
        ids.sort_unstable();
        Ok(ids.into_iter().map(|id| Self::thread(Pid::from_raw(id))).collect())
    }

    /// CPU time used since the thread or process started.
    ///
    /// # Errors
    /// `EINVAL` once the thread has ended (or was never one of this process).
    pub fn elapsed(self) -> io::Result<Duration> {
        Ok(self.0.now()?.into())
    }
}

/// CPU time at one instant; two of them give a load.
#[derive(Clone, Copy, Debug)]
pub struct CpuSample {
    at: Instant,
    used: Duration,
}

impl CpuSample {
    /// Reads the clocks and adds up what they tell: the workers of one server, say.
    ///
    /// # Errors
    /// Those of [`CpuClock::elapsed`].
    pub fn take(clocks: &[CpuClock]) -> io::Result<Self> {
        let used = clocks.iter().map(|clock| clock.elapsed()).sum::<io::Result<_>>()?;
        Ok(Self { at: Instant::now(), used })
    }

    /// Per cent of one core between an earlier sample of the same clocks and this one: 100 is one busy thread, two
    /// busy threads are 200. 0 when no time has passed.
    #[must_use]
    pub fn pct_since(&self, earlier: &Self) -> f64 {
        let wall = self.at.saturating_duration_since(earlier.at);
        if wall.is_zero() {
            0.0
        } else {
            100.0 * self.used.saturating_sub(earlier.used).div_duration_f64(wall)
        }
    }
}

/// Memory of this process that is resident, in bytes.
///
/// # Errors
/// When `/proc/self/status` cannot be read or does not tell (it always does on Linux).
pub fn rss_bytes() -> io::Result<u64> {
    // statm has the same number in pages; this one needs no page size, which only libc knows.
    let status = fs::read_to_string("/proc/self/status")?;
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no line VmRSS");
    rss_of(&status).ok_or_else(missing)
}

fn rss_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    // "kB" there means 1,024 bytes: proc_pid_status(5).
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, sync::mpsc, thread};

    use super::*;

    /// Uses CPU time, not wall time, so that it means the same on a machine that is busy with other things.
    fn burn(cpu: Duration) {
        let clock = CpuClock::this_thread();
        let until = clock.elapsed().unwrap() + cpu;
        while clock.elapsed().unwrap() < until {
            black_box((0..1_000_u64).sum::<u64>());
        }
    }

    /// Goal: another thread's clock tells that thread's CPU time and no other's. Method: a thread burns 30 ms and
    /// waits, watched from here, where nothing is burnt.
    #[test]
    fn a_thread_is_watched_from_outside() {
        let (started, clocks) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let worker = thread::spawn(move || {
            started.send(CpuClock::this_thread()).unwrap();
            burn(Duration::from_millis(30));
            started.send(CpuClock::this_thread()).unwrap();
            let _ = stopped.recv();
        });
        let clock = clocks.recv().unwrap();
        assert_eq!(clocks.recv().unwrap(), clock);
        let used = clock.elapsed().unwrap();
        assert!((30..300).contains(&used.as_millis()), "{used:?}");

        // Asleep, it uses nothing.
        let before = CpuSample::take(&[clock]).unwrap();
        thread::sleep(Duration::from_millis(20));
        let load = CpuSample::take(&[clock]).unwrap().pct_since(&before);
        assert!(load < 10.0, "{load} %");

        assert!(CpuClock::process().elapsed().unwrap() >= used);
        drop(stop);
        worker.join().unwrap();
        assert!(clock.elapsed().is_err(), "the clock of a thread that has ended");
    }

    /// Goal: a load is CPU time by wall time. Method: samples made by hand.
    #[test]
    fn a_load_is_cpu_time_by_wall_time() {
        let at = Instant::now();
        let sample = |wall_ms, cpu_ms| CpuSample {
            at: at + Duration::from_millis(wall_ms),
            used: Duration::from_millis(cpu_ms),
        };
        assert_eq!(sample(100, 50).pct_since(&sample(0, 0)), 50.0);
        assert_eq!(sample(300, 450).pct_since(&sample(100, 50)), 200.0);
        assert_eq!(sample(100, 60).pct_since(&sample(100, 50)), 0.0);
        assert_eq!(sample(50, 50).pct_since(&sample(100, 50)), 0.0);
    }

    /// Goal: threads are found by the start of their names. Method: two named threads and one named otherwise.
    #[test]
    fn threads_are_found_by_name() {
        let (stop, stopped) = mpsc::channel::<()>();
        let stopped = std::sync::Arc::new(std::sync::Mutex::new(stopped));
        let (ready, clocks) = mpsc::channel();
        let workers: Vec<_> = ["cpu-test-0", "cpu-test-1", "other"]
            .into_iter()
            .map(|name| {
                let (ready, stopped) = (ready.clone(), stopped.clone());
                let work = move || {
                    ready.send(CpuClock::this_thread()).unwrap();
                    let _ = stopped.lock().unwrap().recv();
                };
                let worker = thread::Builder::new().name(name.to_owned()).spawn(work).unwrap();
                (worker, clocks.recv().unwrap())
            })
            .collect();
        let mut expected: Vec<_> = workers[..2].iter().map(|&(_, clock)| clock).collect();
        let mut found = CpuClock::threads_named("cpu-test-").unwrap();
        // Ids may have wrapped round in between; the set is what counts here.
        expected.sort_by_key(|clock| clock.0.as_raw());
        found.sort_by_key(|clock| clock.0.as_raw());
        assert_eq!(found, expected);
        assert!(CpuClock::threads_named("no such thread").unwrap().is_empty());
        drop(stop);
        workers.into_iter().for_each(|(worker, _)| worker.join().unwrap());
    }

    /// Goal: memory that is used is seen. Method: touch 64 MiB and look before and after.
    #[test]
    fn touched_memory_is_resident() {
        const LEN: usize = 64 << 20;
        let before = rss_bytes().unwrap();
        let block = black_box(vec![1_u8; LEN]);
        let after = rss_bytes().unwrap();
        drop(block);
        // Other tests free memory meanwhile.
        assert!(after >= before + LEN as u64 / 2, "{before} → {after}");
    }

    #[test]
    fn rss_is_read_in_kib() {
        assert_eq!(rss_of("Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t 1 kB\n"), Some(2 << 20));
        assert_eq!(rss_of("Name:\tx\n"), None);
        assert_eq!(rss_of("VmRSS:\t lots kB\n"), None);
    }
}
