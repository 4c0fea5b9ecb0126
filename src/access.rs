//! Who comes in, how many at a time and how often, and what each may do: rules as values, free of sockets and clocks.

pub mod addresses;
pub mod admission;
mod config;
pub mod identity;
mod newcomers;
pub mod origin;
pub mod pattern;
pub mod policy;
pub mod rate;
mod reason;
pub mod revocations;
mod rights;
pub mod template;

pub use addresses::{Address, Network};
pub use admission::{Admission, Visit};
pub use config::Config;
pub use identity::{Credential, Failure, Identity, Source};
pub use newcomers::Newcomers;
pub use origin::{Origin, Page};
pub use policy::{Action, Allowance, Group as GroupConfig, Policy, Role as RoleConfig, Wish};
pub use rate::Rate;
pub use reason::Reason;
pub use revocations::{Revocation, Revocations};
pub use rights::{Explanation, Rights, Subscribing};
pub use template::{Template, Template as TemplateConfig};
