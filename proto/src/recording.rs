//! The encrypted file that holds what passed through a session (DESIGN.md section 7).
//!
//! ```text
//! header   magic, name, wrapped data key (an age file to the auditors)
//! record   flag, length, AES-256-GCM over lines of asciicast v3
//! record   …                                bound to header, number and flag
//! record   flag `final`: without it the recording was interrupted
//! ```
//!
//! [`writer`] writes it ([`seal`] its records), [`open`] reads it, [`cast`] is what stands inside. Randomness and the age
//! encryption are the caller's: this module is handed a [`DataKey`] and its wrapped form.

pub mod bulk;
pub mod cast;
pub mod entry;
pub mod name;
pub mod open;
pub mod play;
pub mod seal;
pub mod writer;

pub use entry::{Entry, Kind};
pub use name::RecordingName;
pub use open::{Ending, OpenError, Opened, ReadError};
pub use play::{PlayError, Player};
pub use seal::{DataKey, Sealer};
pub use writer::{Keep, RecordingWriter};
