//! Any of the fuzz targets: the one that the program is named for.
#![no_main]

#[path = "../claims.rs"]
pub mod claims;

libfuzzer_sys::fuzz_target!(|data: &[u8]| claims::hold(option_env!("CARGO_BIN_NAME").unwrap_or_default(), data));
