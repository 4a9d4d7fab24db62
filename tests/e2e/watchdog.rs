//! A story that hangs fails by its name, and soon: without it a whole run would wait.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Several times what the longest story takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// Long runs, asked for by these, take what they take (README).
const LONG_RUNS: [&str; 5] = [
    "POSTERN_COPY",
    "POSTERN_CUTS",
    "POSTERN_LONG_TUNNEL",
    "POSTERN_STORM",
    "POSTERN_VANISH",
];

thread_local! {
    /// Gone with the test's thread, or replaced by the next test on it.
    static RUNNING: RefCell<Option<Arc<()>>> = const { RefCell::new(None) };
}

/// Ends the whole run if the calling test is not over in time.
pub(crate) fn watch() {
    if LONG_RUNS
        .iter()
        .any(|name| std::env::var_os(name).is_some())
    {
        return;
    }
    let running = Arc::new(());
    let over = Arc::downgrade(&running);
    RUNNING.set(Some(running));
    let name = thread::current().name().unwrap_or("a test").to_owned();
    thread::spawn(move || {
        let deadline = Instant::now() + LIMIT;
        // Nobody wakes it, and it may wake by itself.
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            thread::park_timeout(left);
        }
        if over.strong_count() > 0 {
            // Straight to the run's stderr: what a test prints is kept until it ends.
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "{name} hangs: not over after {LIMIT:?}");
            std::process::abort();
        }
    });
}
