//! Who may do what, and how often. Free of sockets and clocks.

pub mod rate;

pub use rate::Rate;
