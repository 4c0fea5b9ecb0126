//! One browser connection: who it is, what it may ask, and the loop that carries it out.

mod config;
mod greeting;
mod rates;
pub mod roster;
pub mod run;
pub mod socket;
mod state;

pub use config::Config;
pub use roster::Roster;
pub use run::{Context, Settings, run};
pub use socket::{Inbound, Outbound, Socket};
