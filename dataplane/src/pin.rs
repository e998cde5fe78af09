//! Pinning threads to cores, and lists of cores as people write them.

use std::{error, fmt, io, str::FromStr};

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// Cores that a [`CoreList`] and an affinity mask can name are numbered from 0 to one below this: 1,024 is the size of
/// glibc's fixed mask (`CPU_SETSIZE`, sched.h).
pub const CORES_MAX: usize = CpuSet::count();

/// The calling thread, in sched_setaffinity(2) and sched_getaffinity(2).
const THIS_THREAD: Pid = Pid::from_raw(0);

/// Binds the calling thread to `core`; threads that it starts later inherit this.
///
/// Only the kernel's limit counts (the cpuset of the container): a mask that the thread had before may be left.
///
/// # Errors
/// A sentence that names the core and the cores that were allowed so far: the core does not exist, is offline or lies
/// outside the cpuset (`InvalidInput`), or the system forbids pinning (`PermissionDenied`).
pub fn pin_to_core(core: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(core).and_then(|()| sched_setaffinity(THIS_THREAD, &only)).map_err(|errno| refusal(core, errno))
}

/// The cores that the calling thread may run on, ascending, never empty.
///
/// A thread that is pinned already sees its own core only, as do the threads that it starts: ask before pinning.
///
/// # Errors
/// Those of sched_getaffinity(2), which amount to a machine with more than [`CORES_MAX`] cores.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(THIS_THREAD)?;
    // `is_set` fails only beyond the mask.
    Ok((0..CORES_MAX).filter(|&core| allowed.is_set(core).unwrap_or(false)).collect())
}

fn refusal(core: usize, errno: Errno) -> io::Error {
    let allowed = match allowed_cores() {
        Ok(cores) => format!("the allowed cores are {}", CoreList(cores)),
        Err(error) => format!("the allowed cores are unknown ({error})"),
    };
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("cannot pin a thread to core {core}: {}; {allowed}", errno.desc()))
}

/// Cores in the order given, each once, at least one: `0-3` or `0,2,4-5`.
///
/// The order is kept because it has a meaning: the first worker runs on the first core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreList(Vec<usize>);

impl CoreList {
    /// Takes a list that was computed.
    ///
    /// # Errors
    /// Like parsing: when it is empty, names a core twice, or one beyond [`CORES_MAX`].
    pub fn new(cores: Vec<usize>) -> Result<Self, CoreListError> {
        if cores.is_empty() {
            return Err(CoreListError::Empty);
        }
        let mut seen = [false; CORES_MAX];
        for &core in &cores {
            match seen.get_mut(core) {
                None => return Err(CoreListError::TooLarge(core)),
                Some(true) => return Err(CoreListError::Twice(core)),
                Some(unseen) => *unseen = true,
            }
        }
        Ok(Self(cores))
    }

    /// The cores in the order given.
    #[must_use]
    pub fn cores(&self) -> &[usize] {
        &self.0
    }

    /// Checks that each core is one of `allowed` (of [`allowed_cores`]), so that a wrong list is refused at start and
    /// not by the one worker that fails to pin itself.
    ///
    /// # Errors
    /// [`CoreListError::NotAllowed`] with the first core that is not.
    pub fn check(&self, allowed: &[usize]) -> Result<(), CoreListError> {
        match self.0.iter().find(|core| !allowed.contains(core)) {
            Some(&core) => Err(CoreListError::NotAllowed { core, allowed: Self(allowed.to_vec()) }),
            None => Ok(()),
        }
    }
}

impl FromStr for CoreList {
    type Err = CoreListError;

    fn from_str(text: &str) -> Result<Self, CoreListError> {
        if text.trim().is_empty() {
            return Err(CoreListError::Empty);
        }
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (core_of(first, part)?, core_of(last, part)?);
            if last < first {
                return Err(CoreListError::Backwards { first, last });
            }
            // Checked before the range is written out: "0-4000000000" must not fill the memory.
            if last >= CORES_MAX {
                return Err(CoreListError::TooLarge(last));
            }
            cores.extend(first..=last);
        }
        Self::new(cores)
    }
}

fn core_of(number: &str, part: &str) -> Result<usize, CoreListError> {
    number.trim().parse().map_err(|_| CoreListError::Malformed(part.trim().to_owned()))
}

impl fmt::Display for CoreList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|core, next| core + 1 == *next);
        for (index, run) in runs.enumerate() {
            let separator = if index == 0 { "" } else { "," };
            match *run {
                [first, .., last] => write!(f, "{separator}{first}-{last}")?,
                [only] => write!(f, "{separator}{only}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

/// Why a list of cores is refused; displayed as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoreListError {
    /// No core at all.
    Empty,
    /// This part of the list is neither a number nor a range of two.
    Malformed(String),
    /// A range that counts down.
    Backwards {
        /// Its left end.
        first: usize,
        /// Its right end, smaller.
        last: usize,
    },
    /// The core is named more than once.
    Twice(usize),
    /// No machine that this program supports has such a core.
    TooLarge(usize),
    /// This process may not run on the core.
    NotAllowed {
        /// The core that was asked for.
        core: usize,
        /// Where it may run.
        allowed: CoreList,
    },
}

impl fmt::Display for CoreListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the core list is empty; write it like 0-3 or 0,2,4-5"),
            Self::Malformed(part) => {
                write!(
                    f,
                    "\"{part}\" is neither a core nor a range of cores; write the list like 0-3 or 0,2,4-5"
                )
            }
            Self::Backwards { first, last } => {
                write!(f, "the core range {first}-{last} runs backwards; write {last}-{first}")
            }
            Self::Twice(core) => write!(f, "core {core} is listed twice; each core takes one thread"),
            Self::TooLarge(core) => {
                write!(
                    f,
                    "core {core} does not exist; cores are numbered from 0 to at most {}",
                    CORES_MAX - 1
                )
            }
            Self::NotAllowed { core, allowed } => {
                write!(f, "core {core} is not available to this process; the allowed cores are {allowed}")
            }
        }
    }
}

impl error::Error for CoreListError {}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Goal: lists are read as written, order kept, and written back in their shortest form. Method: pairs of input,
    /// cores and output.
    #[test]
    fn lists_are_read_and_written() {
        for (text, cores, shortest) in [
            ("0", &[0][..], "0"),
            ("0-3", &[0, 1, 2, 3], "0-3"),
            ("0,2,4-5", &[0, 2, 4, 5], "0,2,4-5"),
            ("0,1,2", &[0, 1, 2], "0-2"),
            (" 7 , 1 - 2 ", &[7, 1, 2], "7,1-2"),
            ("3,2,1", &[3, 2, 1], "3,2,1"),
            ("5-5", &[5], "5"),
            ("1023", &[1023], "1023"),
        ] {
            let list: CoreList = text.parse().unwrap();
            assert_eq!(list.cores(), cores, "{text}");
            assert_eq!(list.to_string(), shortest, "{text}");
            assert_eq!(shortest.parse(), Ok(list), "{text}");
        }
    }

    /// Goal: every malformed list is refused with a sentence that says what is wrong. Method: one list per mistake.
    #[test]
    fn wrong_lists_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "the core list is empty"),
            ("  ", "the core list is empty"),
            (",", "\"\" is neither a core nor a range"),
            ("1,", "\"\" is neither a core nor a range"),
            ("a", "\"a\" is neither a core nor a range"),
            ("0-", "\"0-\" is neither a core nor a range"),
            ("-1", "\"-1\" is neither a core nor a range"),
            ("0-1-2", "\"0-1-2\" is neither a core nor a range"),
            ("99999999999999999999", "neither a core nor a range"),
            ("3-0", "the core range 3-0 runs backwards; write 0-3"),
            ("0-2,1", "core 1 is listed twice"),
            ("1024", "core 1024 does not exist; cores are numbered from 0 to at most 1023"),
            ("0-4000000000", "core 4000000000 does not exist"),
        ] {
            let error = text.parse::<CoreList>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        assert_eq!(CoreList::new(vec![]), Err(CoreListError::Empty));
        assert_eq!(CoreList::new(vec![4, 4]), Err(CoreListError::Twice(4)));
    }

    #[test]
    fn a_list_is_checked_against_what_is_allowed() {
        let list: CoreList = "0-3".parse().unwrap();
        assert_eq!(list.check(&[0, 1, 2, 3, 8]), Ok(()));
        let error = list.check(&[0, 1]).unwrap_err().to_string();
        assert_eq!(error, "core 2 is not available to this process; the allowed cores are 0-1");
    }

    /// Goal: pinning binds the calling thread and no other, and the next pin may leave that core again. Method: one
    /// thread visits each allowed core and reads its own mask back.
    #[test]
    fn a_thread_is_pinned_to_each_allowed_core() {
        let allowed = allowed_cores().unwrap();
        assert!(!allowed.is_empty());
        let visited = allowed.clone();
        thread::spawn(move || {
            for core in visited {
                pin_to_core(core).unwrap();
                assert_eq!(allowed_cores().unwrap(), [core]);
            }
        })
        .join()
        .unwrap();
        assert_eq!(allowed_cores().unwrap(), allowed);
    }

    /// Goal: the refusal names core and allowed cores. Method: a core beyond the mask, and the last one of the mask,
    /// which no test machine has.
    #[test]
    fn a_core_that_does_not_exist_is_refused() {
        let allowed = CoreList::new(allowed_cores().unwrap()).unwrap();
        for core in [CORES_MAX, CORES_MAX - 1] {
            let error = pin_to_core(core).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let (sentence, start) = (error.to_string(), format!("cannot pin a thread to core {core}: "));
            assert!(sentence.starts_with(&start), "{sentence}");
            assert!(sentence.ends_with(&format!("; the allowed cores are {allowed}")), "{sentence}");
        }
    }
}
