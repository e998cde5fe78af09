//! A thread that reads what the whole process takes, so that no core has to: the kernel counts pages meanwhile, for tens of
//! microseconds or, where it looks for huge ones, for milliseconds.

use std::{
    io,
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

use linerate_dataplane::privilege::drop_all;

use crate::stats::{Published, process_huge_page_len, process_rss_len};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The thread; it ends with this value.
#[derive(Debug)]
pub(crate) struct Watcher {
    /// Nothing is ever sent: the thread notices at once when this is gone.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the thread, which gives up all capabilities, and returns once the first figures are published.
    ///
    /// # Errors
    /// What the system says when it has no more threads or does not let go of capabilities.
    pub(crate) fn start(published: Vec<Published>) -> io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let (ready, prepared) = channel();
        let thread = std::thread::Builder::new().name("watcher".to_owned()).spawn(move || {
            let result = drop_all();
            let failed = result.is_err();
            publish(&published);
            let _ = ready.send(result);
            while !failed && stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                publish(&published);
            }
        })?;
        let watcher = Self { stop: Some(stop), thread: Some(thread) };
        prepared.recv().map_err(|_| io::Error::other("the watcher ended at its start"))??;
        Ok(watcher)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It can not fail but by a panic, which was shown.
            let _ = thread.join();
        }
    }
}

fn publish(published: &[Published]) {
    let (rss_len, huge_page_len) = (process_rss_len(), process_huge_page_len());
    published.iter().for_each(|core| core.store_process(rss_len, huge_page_len));
}

#[cfg(test)]
mod tests {
    use linerate_proto::wire::Statistic;

    use super::*;

    /// Goal: all cores tell of the process from the start, and nothing goes on after the end. Method: two cores; the thread
    /// holds on to what it writes to for as long as it runs.
    #[test]
    fn figures_are_there_at_once_and_the_thread_ends() {
        let published = [Published::default(), Published::default()];
        let watcher = Watcher::start(published.to_vec()).unwrap();
        for core in &published {
            assert!(core.values()[Statistic::RssBytes as usize] > 1 << 20);
            assert!(core.is_shared());
        }
        drop(watcher);
        assert!(published.iter().all(|core| !core.is_shared()));
    }
}
