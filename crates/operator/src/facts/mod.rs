//! What is known about the cluster: watched where every request needs it, read live where only a
//! few do.

mod index;
mod policies;
mod project;
mod reader;
mod watch;

pub use policies::{Policies, spawn as spawn_policies};
pub use reader::Reader;
pub use watch::spawn;
