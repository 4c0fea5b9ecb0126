//! Who comes in, how many at a time and how often, and what each may do: rules as values, free of sockets and clocks.

pub mod addresses;
pub mod admission;
mod config;
pub mod identity;
mod newcomers;
pub mod rate;
mod reason;

pub use addresses::{Address, Network};
pub use admission::{Admission, Visit};
pub use config::Config;
pub use identity::{Credential, Failure, Identity, Source};
pub use newcomers::Newcomers;
pub use rate::Rate;
pub use reason::Reason;
