//! What people and programs see: the answer on stdout, everything else on stderr.

/// Decided once: plain or JSON, verbose or quiet, terminal or not.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    /// `--json`.
    pub json: bool,
    /// `-v`.
    pub verbose: bool,
}
