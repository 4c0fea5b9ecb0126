//! One browser connection: who it is, what it may ask, and the loop that carries it out.

mod composing;
mod config;
mod entrance;
mod expiry;
pub mod explaining;
mod greeting;
mod guard;
pub mod listing;
mod publishing;
mod queue;
mod quota;
mod rates;
mod reloads;
mod revoking;
pub mod roster;
pub mod run;
pub mod socket;
mod state;

pub use config::Config;
pub use entrance::{Entrance, Lobby, Newcomer, Pass, turned_away};
pub use guard::{Presented, Vouching, note_failure};
pub use quota::Quotas;
pub use reloads::{Askers, Reloaded, Reloads};
pub use revoking::Shut;
pub use roster::{Roster, Summons, Visitor};
pub use run::{Arrival, Context, Doors, Settings, generated_client_id, run};
pub use socket::{Inbound, Outbound, Socket};
