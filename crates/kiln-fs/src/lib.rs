//! The small things that several of kiln's processes need in exactly the same form: replacing a file whole, locks between
//! processes, which process a pid means, the clocks, and an error with its causes on one line.
//!
//! Each of these has one right way and several that nearly work. They stood in several crates, and differed where
//! it mattered: one synced the folder, another did not; one opened the pidfd before it asked who the process is, another after.
//! So they have this one home, below every crate that touches the machine. It links nothing but the kernel's calls and serde.

mod causes;
pub mod clock;
mod lock;
mod process;
mod replace;

pub use causes::with_causes;
pub use lock::{LockFile, is_locked};
pub use process::{Process, ProcessId};
pub use replace::{read_optional, replace, replace_at, replace_in_place, sync_folder_of};
