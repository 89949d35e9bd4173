//! Bounds, and whether they are kept.

use std::process::ExitCode;

/// What became of the bounds so far.
#[derive(Default)]
pub struct Verdicts {
    missed: usize,
}

impl Verdicts {
    /// A value that may be at most so large.
    pub fn bound(&mut self, what: &str, value: f64, most: f64, unit: &str) {
        self.verdict(what, value <= most, &format!("{value:.2}{unit}, at most {most:.2}{unit}"));
    }

    /// A value that has to be at least so large.
    #[allow(dead_code, reason = "not every bench has such a bound")]
    pub fn at_least(&mut self, what: &str, value: f64, least: f64, unit: &str) {
        self.verdict(what, value >= least, &format!("{value:.2}{unit}, at least {least:.2}{unit}"));
    }

    /// Something that has to be so.
    #[allow(dead_code, reason = "not every bench has such a bound")]
    pub fn holds(&mut self, what: &str, kept: bool) {
        self.verdict(what, kept, if kept { "yes" } else { "no" });
    }

    fn verdict(&mut self, what: &str, kept: bool, figures: &str) {
        self.missed += usize::from(!kept);
        println!("{}  {what}: {figures}", if kept { "kept  " } else { "MISSED" });
    }

    /// 1 when a bound is missed.
    pub fn exit_code(self) -> ExitCode {
        if self.missed == 0 {
            return ExitCode::SUCCESS;
        }
        eprintln!("{} bounds missed", self.missed);
        ExitCode::FAILURE
    }
}
