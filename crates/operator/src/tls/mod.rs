//! The serving certificate: where it comes from, and how it is changed under running connections.
//!
//! ```text
//!  files (mounted Secret) ──poll──┐           key ≟ certificate
//!                                 ├─► Identity ─► Outlet ─► Resolver (ArcSwap) ─► handshakes, /readyz
//!  self-made CA + leaf ──rotate───┘                 └─────► CA bundle ─► webhook configurations
//! ```

mod files;
mod identity;
mod outlet;
mod resolver;
mod selfmade;
mod store;

pub use files::{Files, follow as follow_files};
pub use identity::{Identity, IdentityError};
pub use outlet::Outlet;
pub use resolver::{Resolver, server_config};
pub use store::{Store, follow as follow_store};
