//! Named places at which a test can hold a real node process and kill it there. Only with the feature `fault-points`.
//!
//! `MIMI_FAULT_POINT=name:needle:count` holds the process at the `count`th passing of `name` whose subject contains `needle`:
//! it writes `fault point reached` to standard error and then stands still until it is killed.
//!
//! `MIMI_CLOCK_OFFSET_MS=3600000` gives the process a clock that is an hour ahead, wherever it asks [`super::UnixMillis::now`]. TLS,
//! which asks the system itself, is not deceived.

use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Armed {
    name: String,
    needle: String,
    count: u64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
static PASSED: AtomicU64 = AtomicU64::new(0);

/// Passes the fault point `name`; `subject` says what for.
pub fn reached(name: &str, subject: impl FnOnce() -> String) {
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("MIMI_FAULT_POINT").ok()?;
        let mut parts = text.splitn(3, ':');
        let (name, needle, count) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Armed { name: name.to_owned(), needle: needle.to_owned(), count: count.parse().ok()? })
    });
    let Some(armed) = armed else { return };
    if armed.name != name || !subject().contains(&armed.needle) {
        return;
    }
    if PASSED.fetch_add(1, Ordering::SeqCst) + 1 == armed.count {
        let _ = writeln!(std::io::stderr(), "fault point reached");
        loop {
            // Holds this thread for good; the test kills the process.
            std::thread::park();
        }
    }
}

/// How far the process's clock is to be off, in milliseconds; 0 unless a test says otherwise.
pub fn clock_offset_ms() -> i64 {
    static OFFSET_MS: OnceLock<i64> = OnceLock::new();
    *OFFSET_MS.get_or_init(|| std::env::var("MIMI_CLOCK_OFFSET_MS").ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}
