//! One browser connection: who it is, what it may ask, and the loop that carries it out.

mod composing;
mod config;
mod entrance;
mod expiry;
mod greeting;
mod guard;
mod queue;
mod quota;
mod rates;
pub mod roster;
pub mod run;
pub mod socket;
mod state;

pub use config::Config;
pub use entrance::{Entrance, Lobby, Newcomer, Pass, turned_away};
pub use guard::{Presented, Vouching};
pub use quota::Quotas;
pub use roster::{Roster, Summons, Visitor};
pub use run::{Arrival, Context, Doors, Settings, run};
pub use socket::{Inbound, Outbound, Socket};
