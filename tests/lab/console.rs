//! What the lab says to the person before it: the answer on stdout, the rest on stderr.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the one place that prints"
)]

/// An answer.
pub fn answer(text: &str) {
    println!("{text}");
}

/// A command as it would be typed.
pub fn typed(command: &str) {
    println!("\n$ {command}");
}

/// Something beside the answer.
pub fn note(text: &str) {
    eprintln!("\n{text}\n");
}

/// What went wrong.
pub fn error(error: &anyhow::Error) {
    eprintln!("lab: {error:#}");
}
